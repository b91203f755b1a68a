"""Content credentials (C2PA) of an edited video: who says, with their signature, what was done to it.

They state that the lower face was re-drawn by a trained model, by which one, of which video, and to which
speech; the signature covers them and every byte of the file. Only mp4 and mov can hold them. The certificate
and its key are the user's. Nothing is asked of a network: there is no time stamp, and no list of revoked
certificates is read.

The library (``c2pa-python``) reads the source too, whose own credentials are carried along, and runs in the
sandbox for that. A signature contains random numbers, so the same edit has other bytes each time.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image

from shards.atomic import WriteError, make_scratch_folder
from shards.checksum import file_sha256
from shards.errors import make_printable, shorten_message
from shards.files import read_file
from shards.ledger import OK
from stages.engine import sandbox
from stages.engine.outcome import Drop, Outcome, StageError
from stages.engine.sandbox import ClipJob, LimitParams
from stages.media.mark import COMMENT, DIGITAL_SOURCE_TYPE, SOURCE_TYPES

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

log = logging.getLogger(__name__)

FORMATS = {".mp4": "video/mp4", ".mov": "video/quicktime"}
MAX_PEM_BYTES = 2**20
# No thumbnails, nothing from a network, no copy of a large file in memory; and what was written is read again
# and checked.
SETTINGS = {
    "core": {"backing_store_memory_threshold_in_mb": 16},
    "verify": {"verify_after_sign": True, "remote_manifest_fetch": False, "ocsp_fetch": False},
    "builder": {"thumbnail": {"enabled": False}},
}
DRAWN_BY_CODE = f"{SOURCE_TYPES}algorithmicMedia"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
UNREADABLE = "ingredient"  # the code of an input whose own credentials cannot be read
SOURCE, SPEECH = "source", "speech"  # labels of the ingredients


class CredentialsError(StageError):
    """Something cannot be signed. The message names files of whoever signs: not for visitors of a server."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who signs: two files in PEM form."""

    certificates: Path  # the signer's first, then the one that issued it, and so on
    key: Path  # the private key of the first, without a passphrase


@dataclass(frozen=True, slots=True)
class Signing:
    """Who signs an edit, and the model that drew it."""

    credentials: Credentials
    model_name: str
    model_sha256: str  # of its file of weights


def make_signing(credentials: Credentials, model: Path) -> Signing:
    """``model``: the folder of a run or of a checkpoint, or a published file. Raises ModelError."""
    from model.checkpoint import find_run  # loads torch, which the sandbox does without
    from model.start import find_start

    return Signing(credentials, find_run(model).name, find_start(model).record.sha256)


def check_signing(signing: Signing, outputs: Sequence[Path]) -> None:
    """Raise StageError unless these outputs can be signed: before minutes of drawing, not after them."""
    check_formats(outputs)
    check_credentials(signing.credentials)


def check_formats(outputs: Sequence[Path]) -> None:
    """Raise StageError unless these files can hold content credentials."""
    for path in outputs:
        if path.suffix.lower() not in FORMATS:
            raise StageError(f"{path}: content credentials can be in {' and '.join(FORMATS)} only")


def check_credentials(credentials: Credentials) -> None:
    """Raise CredentialsError unless these credentials can sign: a small picture is signed, and read again."""
    if importlib.util.find_spec("c2pa") is None:
        raise CredentialsError('signing needs c2pa-python, which is not installed: pip install "redub[sign]"')
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    picture.seek(0)
    try:
        trial = make_manifest("trial", [{"action": "c2pa.created", "digitalSourceType": DRAWN_BY_CODE}], [])
        _sign(picture, io.BytesIO(), "image/png", trial, [], credentials)
    except Drop as drop:
        raise CredentialsError(drop.reason) from drop


@contextlib.contextmanager
def sign_when_written(
    partial: Path,
    path: Path,
    video: Path,
    audio: Sequence[Path],
    signing: Signing,
    limits: LimitParams,
    seconds: float,
) -> Iterator[Path]:
    """Yield a path to write a video to. When that is complete, the signed video is written to ``partial``.

    ``path`` is the name that it will get, ``video`` and ``audio`` are what it was made from, and ``seconds``
    is its length. Raises CredentialsError when it cannot be signed.
    """
    with make_scratch_folder(partial.parent) as scratch:
        unsigned = scratch / "unsigned"
        try:
            yield unsigned
        except OSError as err:
            if str(err.filename).endswith(unsigned.name):  # the user knows no such file
                raise WriteError(err.errno, err.strerror, str(path)) from err
            raise
        outcome = Outcome()
        for with_history in (True, False):  # a source that the library cannot read is only named
            job = ClipJob(
                sign_video,
                unsigned=unsigned,
                out=partial,
                path=path,
                video=video,
                audio=[*audio],
                signing=signing,
                with_history=with_history,
            )
            outcome = sandbox.run(job, limits, video_seconds=seconds)
            if outcome.status == OK:
                return
            if outcome.code != UNREADABLE:
                break
            log.warning("%s: %s", path, outcome.reason)
        raise CredentialsError(f"{path}: {outcome.reason}")


def sign_video(
    unsigned: Path,
    out: Path,
    path: Path,
    video: Path,
    audio: list[Path],
    signing: Signing,
    with_history: bool,
) -> Outcome:
    """Write ``out``: the video ``unsigned`` with content credentials. Runs in the sandbox.

    ``with_history``: the inputs' own credentials are carried along. Raises Drop when it cannot be signed.
    """
    redrawn = {
        "action": "c2pa.edited",
        "description": COMMENT,
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": {"name": "redub", "version": version("redub")},
        "parameters": {"model": signing.model_name, "modelSha256": signing.model_sha256},
    }
    labels = [SOURCE, *(f"{SPEECH}-{number}" for number in range(len(audio)))]
    files = dict(zip(labels, [video, *audio], strict=True))
    ingredients = {
        label: _describe_ingredient(file, label, "parentOf" if label == SOURCE else "componentOf")
        for label, file in files.items()
    }
    actions = [
        {"action": "c2pa.opened" if label == SOURCE else "c2pa.placed",
         "parameters": {"ingredientIds": [label]}}
        for label in labels
    ]  # fmt: skip
    # The history of each file once: a video can be the speech too.
    histories: dict[Path, str] = {}
    for label, file in files.items():
        if with_history and file.suffix.lower() in FORMATS:
            histories.setdefault(file, label)
    named = [ingredients[label] for label in labels if label not in histories.values()]
    manifest = make_manifest(make_printable(path.name), [*actions, redrawn], named)
    with unsigned.open("rb") as source, out.open("w+b") as destination:
        read = [(ingredients[label], file) for file, label in histories.items()]
        _sign(source, destination, FORMATS[path.suffix.lower()], manifest, read, signing.credentials)
    return Outcome()


def make_manifest(
    title: str, actions: Sequence[dict[str, Any]], ingredients: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What is stated, as c2pa-python wants it; ``ingredients`` are those without a history of their own."""
    return {
        "claim_generator_info": [{"name": "redub", "version": version("redub")}],
        "title": title,
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [*actions]}, "created": True}],
        "ingredients": [*ingredients],
    }


def _describe_ingredient(path: Path, label: str, relationship: str) -> dict[str, Any]:
    return {
        "title": make_printable(path.name),  # a name need not be UTF-8
        "format": _guess_format(path),
        "relationship": relationship,
        "label": label,
        "description": f"sha256 {file_sha256(path)}",
    }


def _guess_format(path: Path) -> str:
    return (
        FORMATS.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    )


def _sign(
    source: BinaryIO,
    destination: BinaryIO,
    file_format: str,
    manifest: Mapping[str, Any],
    ingredients: Sequence[tuple[dict[str, Any], Path]],
    credentials: Credentials,
) -> None:
    """Write a file with a signed manifest; ``ingredients`` are those whose own credentials are read."""
    import c2pa

    chain, key, algorithm = _read_credentials(credentials)
    try:
        context = c2pa.Context.from_dict(SETTINGS)
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))
        builder = c2pa.Builder(manifest, context=context)
        for description, path in ingredients:
            with path.open("rb") as file:
                _add_ingredient(builder, description, file)
        builder.sign(signer, file_format, source, destination)
    except c2pa.C2paError as err:
        raise Drop(
            "signature", f"{credentials.certificates}: cannot sign ({shorten_message(str(err))})"
        ) from err


def _add_ingredient(builder: Any, description: Mapping[str, Any], file: BinaryIO) -> None:
    """Add an input with the credentials that it has. Raises Drop for one that the library cannot read."""
    import c2pa

    try:
        builder.add_ingredient(description, description["format"], file)
    except c2pa.C2paError as err:
        reason = (
            f"what {description['title']} says of its own past cannot be read, so it is only named ({err})"
        )
        raise Drop(UNREADABLE, shorten_message(reason)) from err


def _read_credentials(credentials: Credentials) -> tuple[bytes, bytes, str]:
    """The chain of certificates and the key, in PEM form, and the algorithm of signatures.

    Raises Drop, whose reason never holds a part of the key.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    chain = _read_pem(credentials.certificates)
    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as err:
        raise Drop("certificate", f"{credentials.certificates}: has no certificate in PEM form") from err
    _check_dates(certificate, credentials.certificates)
    pem = _read_pem(credentials.key)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise Drop("key", f"{credentials.key}: is encrypted, expected a key without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Drop("key", f"{credentials.key}: has no private key in PEM form") from None
    if key.public_key() != certificate.public_key():
        raise Drop("key", f"{credentials.key}: does not fit the certificate in {credentials.certificates}")
    algorithm = _select_algorithm(key, credentials.key)
    plain = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return chain, plain, algorithm


def _read_pem(path: Path) -> bytes:
    try:
        return read_file(path, MAX_PEM_BYTES)
    except OSError as err:
        raise Drop("credentials", f"{path}: cannot be read ({err.strerror})") from err


def _check_dates(certificate: Certificate, path: Path) -> None:
    """Raise Drop unless a certificate is valid today."""
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= datetime.now(timezone.utc) <= last:
        raise Drop(
            "certificate",
            f"{path}: the first certificate is valid from {first:%Y-%m-%d} to {last:%Y-%m-%d} only",
        )


def _select_algorithm(key: PrivateKeyTypes, path: Path) -> str:
    """C2PA's name of the algorithm that signs with a key. Raises Drop when it has none."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise Drop(
        "key", f"{path}: content credentials are signed by a key of P-256, P-384, P-521, Ed25519 or RSA"
    )
