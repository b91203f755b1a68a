"""Every video with drawn mouths says so in its own metadata, whoever writes it and in whatever container."""

from __future__ import annotations

import ast
import os
import struct
from fractions import Fraction
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from stages.edit.writer import CONTAINERS, OutputFormat, VideoWriter
from stages.edit.yuv import Colours, YuvImage
from stages.media.encode import write_mp4
from stages.media.mark import COMMENT, DIGITAL_SOURCE_TYPE, MATROSKA_TAG
from tests.media import read_rgb_frames

ROOT = Path(__file__).parents[3]
COLOURS = Colours(5, 1, 5, 6)
FORMAT = OutputFormat(64, 48, Fraction(1, 25), Fraction(25), None, COLOURS, Fraction(1, 5), 20, "fast")
TERM = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
SOURCE_TYPE_NAME = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
# What writes videos. Synthetic clips have no mark, as no model draws them.
WRITERS = {
    "stages/edit/browser_copy.py", "stages/edit/writer.py", "stages/media/encode.py", "stages/synth/clip.py",
}  # fmt: skip
# What says that no mouth was drawn: copies of a visitor's own files, clips as a dataset has them, made films.
UNMARKED = {"stages/edit/browser_copy.py", "stages/preview/video.py", "stages/synth/film.py"}


def write_edit(path: Path, redrawn: bool) -> None:
    with VideoWriter(path, CONTAINERS[path.suffix], FORMAT, (), redrawn=redrawn) as writer:
        for k in range(5):
            planes = (np.full(size, 20 * k, np.uint8) for size in ((48, 64), (24, 32), (24, 32)))
            writer.write(YuvImage(*planes), k, 1)


def write_sample(path: Path, redrawn: bool) -> None:
    frames = [np.full((48, 64, 3), 20 * k, np.uint8) for k in range(5)]
    write_mp4(path, frames, fps=Fraction(25), redrawn=redrawn)


def read_boxes(data: bytes) -> list[tuple[str, bytes]]:
    """The boxes of an mp4 at one level: type and content."""
    boxes = []
    while data:
        size, kind = struct.unpack(">I4s", data[:8])
        boxes.append((kind.decode("latin1"), data[8:size]))
        data = data[size:]
    return boxes


def read_source_type(path: Path) -> str | None:
    """IPTC's Digital Source Type where the container's standard has it."""
    if path.suffix == ".mkv":
        with av.open(os.fspath(path)) as container:
            return container.metadata.get(MATROSKA_TAG)
    boxes = read_boxes(path.read_bytes())
    if path.suffix == ".mov":
        user_data = dict(read_boxes(dict(boxes)["moov"]))["udta"] if b"udta" in dict(boxes)["moov"] else b""
        packets = [content for kind, content in read_boxes(user_data) if kind == "XMP_"]
    else:
        assert [kind for kind, _ in boxes][:2] == ["ftyp", "moov"], "it plays before all is there"
        xmp = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
        packets = [content[16:] for kind, content in boxes if kind == "uuid" and content[:16] == xmp]
    if not packets:
        return None
    [packet] = packets
    return ElementTree.fromstring(packet.decode()).findtext(f".//{SOURCE_TYPE_NAME}")


@pytest.mark.parametrize("name", ["edit.mp4", "edit.mov", "edit.mkv", "sample.mp4"])
def test_what_a_model_drew_is_marked_for_machines_and_people_with_the_same_bytes(
    tmp_path: Path, name: str
) -> None:
    write = write_sample if name.startswith("sample") else write_edit
    path = tmp_path / name
    write(path, redrawn=True)
    first = path.read_bytes()
    assert read_source_type(path) == DIGITAL_SOURCE_TYPE == TERM
    with av.open(os.fspath(path)) as container:
        comments = {key.lower(): value for key, value in container.metadata.items()}
    assert comments["comment"] == COMMENT and len(read_rgb_frames(path)) == 5
    write(path, redrawn=True)
    assert path.read_bytes() == first
    write(path, redrawn=False)
    assert read_source_type(path) is None and COMMENT.encode() not in path.read_bytes()


def test_no_other_code_writes_videos_and_only_copies_and_true_clips_are_unmarked() -> None:
    """A new writer is not overlooked: it goes through the two that mark, or is added here on purpose."""
    writers, unmarked = set(), set()
    for package in ("pipeline", "stages", "sampler", "model", "shards"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            text = path.read_text(encoding="utf-8")
            if not any(
                word in text for word in ("redrawn", '"w"', "ffmpeg", "VideoWriter", "imageio", "write_video")
            ):
                continue  # parsing is slow
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Call):
                    continue
                called = ast.unparse(node.func)
                values = [value.value for value in node.args if isinstance(value, ast.Constant)]
                is_new = (called == "av.open" and "w" in values) or called in (
                    "ffmpeg.output", "cv2.VideoWriter", "imageio.get_writer", "torchvision.io.write_video",
                )  # fmt: skip
                if is_new:
                    writers.add(name)
                is_marking = called in ("VideoWriter", "write_mp4")
                if is_marking and any(item.arg == "redrawn" for item in node.keywords):
                    unmarked.add(name)
    assert writers == WRITERS and unmarked == UNMARKED
