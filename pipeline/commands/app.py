"""`pipeline app`."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from pipeline import params as params_file
from pipeline.options import (
    FOLDER,
    MAX_ADAPT_MINUTES,
    NETWORK,
    NumberRange,
    device_options,
    landmarker_option,
    params_option,
    signing_options,
)

if TYPE_CHECKING:
    from stages.edit.credentials import Credentials

MAX_MB = 10**6  # a terabyte
POLL_SECONDS = 0.2
POLLS_PER_CLEANUP = 50


@click.command("app")
@click.option(
    "--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Offer every run below this folder."
)
@click.option(
    "--run",
    "extra_runs",
    type=NETWORK,
    multiple=True,
    help="Also offer this run, checkpoint or file of `pipeline export`; may be repeated.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: the first free port from 7860 on]")
@click.option(
    "--max-upload-mb", type=click.IntRange(1, MAX_MB), default=200, show_default=True, help="Largest file."
)
@click.option(
    "--max-seconds",
    type=NumberRange(0, 86_400, min_open=True),
    default=60.0,
    show_default=True,
    help="Longest video or recording.",
)
@click.option(
    "--max-pixels", type=click.IntRange(1), default=4096 * 2304, show_default=True, help="Largest frame."
)
@click.option(
    "--max-total-mb",
    type=click.IntRange(1, MAX_MB),
    default=2000,
    show_default=True,
    help="All files of all visitors.",
)
@click.option(
    "--keep-minutes",
    type=click.IntRange(1, 60 * 24 * 7),
    default=120,
    show_default=True,
    help="The files of a page that is not used for so long are deleted.",
)
@click.option(
    "--max-adapt-minutes",
    type=NumberRange(0, MAX_ADAPT_MINUTES),
    default=10.0,
    show_default=True,
    help="Longest training on a visitor's own video, during which all others wait. 0: the page offers none.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Also answer to this name of the server, e.g. of a proxy; may be repeated.",
)
@signing_options
@params_option
@landmarker_option
@device_options
def command(
    runs: Path,
    extra_runs: tuple[Path, ...],
    host: str,
    port: int | None,
    max_upload_mb: int,
    max_seconds: float,
    max_pixels: int,
    max_total_mb: int,
    keep_minutes: int,
    max_adapt_minutes: float,
    allowed_hosts: tuple[str, ...],
    credentials: Credentials | None,
    params: Path | None,
    landmarker: str,
    device: str,
    execution: dict[str, Any],
) -> None:  # fmt: skip
    """Serve a web page that edits videos: upload a video and speech, choose a model, watch and download.

    Only this machine can reach it, unless --host says otherwise. One edit runs at a time. A visitor's files
    are deleted when the visitor leaves, at the latest when the server ends.

    It needs Gradio: pip install "redub[app]".
    """
    if importlib.util.find_spec("gradio") is None:
        raise click.ClickException('the page needs Gradio, which is not installed: pip install "redub[app]"')
    with TemporaryDirectory(prefix="redub-app.", ignore_cleanup_errors=True) as folder:
        # Gradio reads these when it is imported: the folder of uploads, and no analytics.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        from model.execution import Execution, select_device
        from model.signals import catch_stop_signals
        from pipeline.app.example import Example
        from pipeline.app.models import ModelList
        from pipeline.app.page import build_page
        from pipeline.app.server import serve
        from pipeline.app.service import Service
        from pipeline.app.sessions import Sessions
        from stages.edit.credentials import check_credentials
        from stages.media import weights
        from stages.media.networks import list_networks

        if credentials is not None:
            check_credentials(credentials)
        sessions = Sessions(Path(folder), max_mb=max_total_mb, keep_seconds=keep_minutes * 60.0)
        sections = params_file.load(params)
        service = Service(
            models=ModelList(
                runs,
                extra_runs,
                select_device(device),
                Execution(**execution),
                published=list_networks(),
            ),
            sessions=sessions,
            sections=sections,
            landmarker=weights.find(weights.LANDMARKER, landmarker or sections.landmarks.model),
            example=Example(Path(folder), max_seconds=max_seconds),
            max_upload_mb=max_upload_mb,
            max_seconds=max_seconds,
            max_pixels=max_pixels,
            max_adapt_minutes=max_adapt_minutes,
            credentials=credentials,
        )
        service.make_edit_params()  # raises StageError for an option that is out of bounds
        with (
            serve(
                lambda: build_page(service),
                host=host,
                port=port,
                allowed_hosts=allowed_hosts,
                max_upload_mb=max_upload_mb,
                check_space=sessions.check_space,
            ) as url,
            catch_stop_signals() as stop_request,
        ):
            if not is_loopback(host):
                click.echo(f"{host}: anyone who can reach it can use the page and this machine", err=True)
            if not service.models.find_runs():
                no_run = "has no run yet; `pipeline train` makes one, then reload the page"
                click.echo(f"{runs}: {no_run}", err=True)
            click.echo(f"{url} is served until Ctrl-C")
            try:
                n_polls = 0
                while stop_request.signal_name is None:
                    time.sleep(POLL_SECONDS)
                    n_polls += 1
                    if n_polls % POLLS_PER_CLEANUP == 0:
                        sessions.remove_old()
            finally:  # also when the terminal is closed
                sessions.end_all()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
