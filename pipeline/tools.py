"""Versions of what decides a dataset's bytes, and workers that have others."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from pipeline.dataset_stages import STAGES, list_stages
from pipeline.params import Params
from shards.schema import SCHEMA_VERSION
from stages import mels, shard, speech
from stages.engine.cache import versions
from stages.engine.outcome import StageError
from stages.media import weights


def list_tools(params: Params) -> dict[str, str]:
    """Versions of what decides a result besides clips and params."""
    stages = list_stages(params)
    tools = {
        **versions(*shard.list_libraries(params.landmarks.engine), *mels.LIBRARIES),
        **{f"stage {name}": str(STAGES[name].VERSION) for name in stages},
        "schema": str(SCHEMA_VERSION),
        "model": weights.LANDMARKER.sha256,
    }
    if speech.STAGE in stages:
        tools |= {**versions("torch"), "speech encoder": weights.SPEECH_ENCODER.sha256}
    return tools


def check_tools(params: Params, expected: Mapping[str, str]) -> None:
    """Raise StageError unless this process has the tools of the command, ``list_tools`` there.

    With others a worker would write other bytes under keys that the command has made of its own.
    """
    tools = list_tools(params)
    differing = [
        f"{name} {tools.get(name)}, expected {version}"
        for name, version in sorted(expected.items())
        if tools.get(name) != version
    ]
    if differing:
        raise StageError(f"worker on {platform.node()} has {', '.join(differing)}: it would make other bytes")
