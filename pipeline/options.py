"""Options that several commands share."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sampler.params import SampleParams, SamplerName
from shards.cores import count_cores
from shards.names import is_utf8
from shards.storage import is_remote, strip_address
from shards.torchrun import read_place
from stages.corpora import CORPORA

if TYPE_CHECKING:
    from stages.speech import EncoderName


class LocalPath(click.Path):
    """A path on this machine. An address is refused: as a path it would be a folder named "s3:"."""

    kind = "path"

    def refuse_address(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> None:
        """Raise BadParameter for an address."""
        text = os.fspath(value)
        if isinstance(text, str) and is_remote(text):
            name = max(param.opts, key=len) if param else "this"
            self.fail(
                f"{strip_address(text)} is an address; {name} is a {self.kind} of this machine", param, ctx
            )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        self.refuse_address(value, param, ctx)
        return super().convert(value, param, ctx)


class Folder(LocalPath):
    """A path of a folder. Its name is UTF-8, as Parquet, JSON, safetensors and TensorBoard require."""

    kind = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        if not is_utf8(os.fspath(path)):
            self.fail(f"{os.fspath(path)!a}: the name is not UTF-8", param, ctx)
        return path


FOLDER = Folder(file_okay=False, path_type=Path)


class RegularFile(LocalPath):
    """A path of a file that is there, or that is to be written: never a pipe, which would block for ever."""

    kind = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path: Any = super().convert(value, param, ctx)
        # os.path: a name that is too long is not there, and the command says so where it opens it.
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
            self.fail(f"{path} is a pipe, a socket or a device, expected a regular file", param, ctx)
        return path


FILE = RegularFile(dir_okay=False, path_type=Path)


class NetworkPath(LocalPath):
    """What a network is read from: a published name, the folder of a run or checkpoint, or a published file.

    The command receives a path; the file of a published model is checked.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from stages.media.networks import find_network  # loads torch

        name = os.fspath(value)
        if not is_utf8(name):
            self.fail(f"{name!a}: the name is not UTF-8", param, ctx)
        self.refuse_address(value, param, ctx)
        return value if isinstance(value, Path) else find_network(name)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "NAME|DIR|FILE"


NETWORK = NetworkPath()
DEFAULT_NETWORK = "small"  # the packaged model that can be trained further
FAST_NETWORK = "fast"  # the same in one pass a frame


class NumberRange(click.FloatRange):
    """A float between bounds, and never NaN, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number: float = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail("nan is no number", param, ctx)
        return number


MAX_ADAPT_MINUTES = 24 * 60
MAX_WORKERS = 4096  # more than a machine has cores
MEGABYTE = 10**6  # of what is printed, and of options

landmarker_option = click.option(
    "--landmarker", default="", metavar="FILE", help="MediaPipe's face_landmarker.task."
)
params_option = click.option("--params", type=FILE, help="Params file.  [default: ./params.yaml if there]")
workers_option = click.option("--workers", type=click.IntRange(1, MAX_WORKERS), default=count_cores,
                              show_default="one per core",
                              help="Worker processes on this machine.")  # fmt: skip
scheduler_option = click.option(
    "--scheduler", metavar="tcp://HOST:PORT", help="A Dask scheduler to use instead."
)
device_option = click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
                             show_default=True,
                             help="Where networks run; auto is a GPU if there is one.")  # fmt: skip


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The options of a dataset stage's command."""

    dataset: str
    raw: Path
    source: str | None  # address of a bucket that holds the raw clips instead
    work: Path
    out: Path
    publish: str | None  # address that the finished dataset is uploaded to as well
    cache: Path
    workers: int
    scheduler: str | None
    params: Path | None
    landmarker: str
    speech_encoder: EncoderName | None  # None: the params file says it
    cut: bool | None  # likewise
    size: int | None  # px of a crop; None: the params file says it
    licence: str  # of the clips of a folder; empty: not stated
    as_json: bool
    dry_run: bool


BUILD_OPTIONS = (
    click.option("--dataset", type=click.Choice(list(CORPORA)), required=True, help="Corpus in --raw."),
    click.option("--raw", metavar="DIR|s3://BUCKET/PREFIX",
                 help="Raw clips, never written to.  [default: data/DATASET/raw]"),
    click.option("--work", type=FOLDER, help="Folder of the stages' outputs.  [default: data/DATASET]"),
    click.option("--out", metavar="DIR|s3://BUCKET/PREFIX",
                 help="Where the finished shards go; those in WORK/shards are uploaded to a bucket.  "
                 "[default: WORK/shards]"),
    click.option("--cache", type=FOLDER, help="Cache of results.  [default: WORK/.cache]"),
    workers_option,
    scheduler_option,
    params_option,
    landmarker_option,
    click.option("--speech-encoder", type=click.Choice(["none", "whisper-tiny.en"]),
                 help="Add the features of this speech encoder to the dataset.  "
                 "[default: speech.encoder of the params file]"),
    click.option("--cut", type=bool, is_flag=False, flag_value=True, metavar="[true|false]",
                 help="Cut files into clips of one speaking face.  "
                 "[default: cut.enabled of the params file]"),
    click.option("--size", type=click.IntRange(1), metavar="PX",
                 help="Side of a crop, as the network takes it.  [default: align.size of the params file]"),
    click.option("--licence", default="", metavar="TEXT",
                 help="Licence and source of a folder's clips, for dataset.json and for the models that "
                 "are trained on them. GRID and CREMA-D have their own.  [default: not stated]"),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table."),
    click.option("-n", "--dry-run", is_flag=True, help="Print the params and the plan, and exit."),
)  # fmt: skip


def stage_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a dataset stage; the command receives them as a BuildRequest before its own."""

    @functools.wraps(function)
    def command(
        *,
        dataset: str,
        raw: str | None,
        work: Path | None,
        out: str | None,
        cache: Path | None,
        **others: Any,
    ) -> Any:
        work = work or Path("data", dataset)
        source, raw = _split_address(raw, "--raw")
        publish, out = _split_address(out, "--out")
        if source and not publish:
            raise click.BadParameter(
                "clips in a bucket are built into shards in a bucket: s3://...", param_hint="--out"
            )
        names = {field.name for field in fields(BuildRequest)} & others.keys()
        request = BuildRequest(
            dataset=dataset,
            raw=Path(raw) if raw else Path("data", dataset, "raw"),
            source=source,
            work=work,
            out=FOLDER.convert(out, None, None) if out else work / ("published" if source else "shards"),
            publish=publish,
            cache=cache or work / ".cache",
            **{name: others.pop(name) for name in names},
        )
        return function(request, **others)

    return add_endpoint_option(_add_options(BUILD_OPTIONS, command))


def _split_address(value: str | None, option: str) -> tuple[str | None, str | None]:
    """(address, None) for a bucket, (None, folder) for anything else."""
    if value is None or not is_remote(value):
        return None, value
    if not value.startswith("s3://"):
        raise click.BadParameter(
            f"{strip_address(value)}: expected a folder or s3://BUCKET/PREFIX", param_hint=option
        )
    return value, None


SAMPLER_OPTIONS = (
    click.option("--sampler", type=click.Choice(get_args(SamplerName)), help="Sampling method."),
    click.option("--steps", type=click.IntRange(1, 2000), help="Sampling steps per frame."),
    click.option("--guidance", type=NumberRange(0, 100),
                 help="Classifier-free guidance on the audio; above 1: follow it more closely."),
    click.option("--guided-share", type=NumberRange(0, 1, min_open=True), metavar="SHARE",
                 help="Share of a frame's steps, the last ones, that have guidance."),
    click.option("--common-noise", type=NumberRange(0, 1), metavar="SHARE",
                 help="Share of the noise that all frames of a clip have in common, against flicker."),
    click.option("--flat-pauses/--no-flat-pauses", default=None,
                 help="Let no breath or noise within a pause of the speech move the mouth."),
    click.option("--reanchor-every", type=click.IntRange(0), metavar="N",
                 help="Hide the previous frame's mouth every N frames, against drift.  [0: never]"),
    click.option("--seed", type=click.IntRange(0), help="Random seed."),
)  # fmt: skip
DEVICE_OPTIONS = (
    device_option,
    click.option("--precision", type=click.Choice(["auto", "bf16", "fp32"]), default="auto",
                 show_default=True, help="Of matrix products; auto is bf16 on a GPU. Weights stay fp32."),
    click.option("--compile/--no-compile", default=None, help="torch.compile.  [default: on a GPU]"),
)  # fmt: skip


def sampler_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the sampler; the command receives them as a dict, ``sampling``.

    An option that is not set is None: SampleParams has the defaults.
    """
    return _add_options(
        SAMPLER_OPTIONS, _collect(function, "sampling", [field.name for field in fields(SampleParams)])
    )


def device_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--device``, and how a network runs there as a dict for ``Execution``, ``execution``."""
    return _add_options(DEVICE_OPTIONS, _collect(function, "execution", ("precision", "compile")))


SIGNING_OPTIONS = (
    click.option("--sign", type=FILE, metavar="CERTIFICATES.pem",
                 help="Sign what is written with content credentials (C2PA): your certificate, then that of "
                 "its issuer, and so on."),
    click.option("--sign-key", type=FILE, metavar="KEY.pem", help="The private key of --sign's first "
                 "certificate, without a passphrase."),
)  # fmt: skip


def signing_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--sign`` and ``--sign-key``; the command receives them as ``credentials``, or None."""

    @functools.wraps(function)
    def command(*, sign: Path | None, sign_key: Path | None, **others: Any) -> Any:
        from stages.edit.credentials import Credentials

        if (sign is None) != (sign_key is None):
            raise click.UsageError("--sign and --sign-key need each other: certificates and their key")
        credentials = Credentials(sign, sign_key) if sign is not None and sign_key is not None else None
        return function(credentials=credentials, **others)

    return _add_options(SIGNING_OPTIONS, command)


def add_endpoint_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--endpoint-url``. It goes to the environment, for S3 clients in child processes too."""

    def set_endpoint(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            os.environ["AWS_ENDPOINT_URL_S3"] = value

    return click.option("--endpoint-url", metavar="URL", expose_value=False, callback=set_endpoint,
                        help="An S3-compatible server.  [default: AWS_ENDPOINT_URL, the profile's, AWS]"
                        )(function)  # fmt: skip


def _collect(function: Callable[..., Any], argument: str, names: Sequence[str]) -> Callable[..., Any]:
    """Pass the options ``names`` to a command as one dict, ``argument``."""

    @functools.wraps(function)
    def command(**options: Any) -> Any:
        collected = {name: options.pop(name) for name in names}
        return function(**options, **{argument: collected})

    return command


def _add_options(options: Sequence[Callable[..., Any]], function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(options):
        function = option(function)
    return function


def print_once(text: str) -> None:
    """Print a command's result; under ``torchrun`` only the first process prints."""
    if read_place().rank == 0:
        click.echo(text)
