"""The service of the page without a browser: one visitor, who has uploaded files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from model.execution import Execution
from pipeline import params as params_file
from pipeline.app.example import Example
from pipeline.app.models import ModelList
from pipeline.app.service import Service
from pipeline.app.sessions import Kind, Sessions
from stages.edit.credentials import Credentials
from tests.model.worlds import CPU

VISITOR: Any = SimpleNamespace(session_hash="visitor")


def make_service(
    folder: Path,
    runs: Path,
    params: Path,
    landmarker: Path,
    uploads: Mapping[Kind, Path],
    *,
    max_seconds: float,
    max_adapt_minutes: float = 0,
    credentials: Credentials | None = None,
) -> Service:
    """A service that offers the ``runs`` and has linked the ``uploads`` into ``folder``, an empty one."""
    service = Service(
        models=ModelList(runs, (), CPU, Execution()),
        sessions=Sessions(folder / "page"),
        sections=params_file.load(params),
        landmarker=landmarker,
        example=Example(folder, max_seconds=max_seconds),
        max_upload_mb=9,
        max_seconds=max_seconds,
        max_pixels=10**6,
        max_adapt_minutes=max_adapt_minutes,
        credentials=credentials,
    )
    for kind, source in uploads.items():
        upload = folder / "page" / kind / source.name
        upload.parent.mkdir(parents=True)
        os.link(source, upload)
        with service.sessions.get("visitor").check_upload(kind, upload, max_mb=9):
            pass
    return service
