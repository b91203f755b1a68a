"""Cut a video into clips of one person's face and the video's own speech, as a dataset of one shard.

Faces, crops, mels and speech features are made by the functions of an edit, so a network is trained on what
it will be shown. A long video is read in windows that are spread over it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as params_dataclass

from shards.atomic import make_scratch_folder
from shards.checksum import file_sha256
from shards.codec import encode_frame, write_frames
from shards.index import check_index_rows
from shards.ledger import build_ledger
from shards.reader import open_dataset, read_clip
from shards.schema import MELS_PER_FRAME, SPEECH_PER_FRAME, VIDEO_FPS, Frames
from shards.table import Rows
from shards.writer import PackedClip, describe_shard, write_tar
from stages import shard
from stages.adapt.sync import find_lag, score_clips
from stages.cut.params import ThresholdParams
from stages.cut.speaker import SpeakerScore
from stages.edit.face_track import count_face_threads
from stages.edit.plan import EditPlan
from stages.edit.reader import FrameReader, VideoFacts
from stages.edit.render import SoundRows, read_crops
from stages.edit.run import (
    EditParams,
    compute_sound,
    find_speech_encoder,
    make_plans,
    read_speech_facts,
    read_video_facts,
)
from stages.edit.speech import Speech
from stages.engine.cache import versions
from stages.engine.outcome import Outcome, StageError
from stages.engine.progress import Progress
from stages.engine.sandbox import DAY
from stages.engine.stage import Work
from stages.media.faces import FaceFinder
from stages.media.video import count_instants
from stages.metrics.sync import ENCODER, predict_mouth
from stages.shard import PackedShard, ShardParams, finish_dataset, make_info

SPLIT, SPEAKER, CORPUS = "train", "own", "folder"
# In which the mouth's sync is scored, about: half a minute. Finding a mouth in a crop takes 12 ms of a core.
MAX_SYNC_FRAMES = 750


@params_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ExcerptParams:
    """Which part of a video is learned from, and how it is cut."""

    # To learn from. Three minutes of training on a CPU use each frame of so much twice or three times.
    seconds: float = Field(default=60.0, gt=0, le=DAY)
    # Of the video, that are decoded: a longer one is cut from its first so many seconds. Decoding 1080p on
    # one core takes a tenth of its length or more, twice.
    read_seconds: float = Field(default=600.0, gt=0, le=DAY)
    # Of a clip, at most, and of a window. GRID's clips have 3 s; in a clip all pictures are of one light.
    clip_seconds: float = Field(default=5.0, ge=1, le=600)
    # Of a face with speech in all: below it nothing can be learned of a mouth, so the video is refused.
    min_seconds: float = Field(default=2.0, ge=1, le=DAY)


@dataclass(frozen=True, slots=True)
class CutResult:
    """The dataset that a video was cut into."""

    clips: int
    frames: int
    # Before a lag was corrected. None: not measured, since the network takes other features or none.
    sync: SpeakerScore | None = None

    @property
    def seconds(self) -> float:
        """Of the face with speech."""
        return self.frames / VIDEO_FPS


@dataclass(frozen=True, slots=True)
class CutPlan:
    """Which part of a video is read."""

    facts: VideoFacts
    speech: Speech
    seconds: Fraction  # from the first frame on: picture and sound
    windows: list[tuple[int, int]]  # first instant and the one after the last, in order

    @property
    def n_instants(self) -> int:
        """In the windows."""
        return sum(end - first for first, end in self.windows)


def plan_cut(video: Path, params: EditParams, excerpt: ExcerptParams) -> CutPlan:
    """Read a video's facts and decide which part of it to learn from. Raises StageError."""
    facts = read_video_facts(video, params)
    try:
        speech = read_speech_facts(video, params)
    except StageError as err:
        raise StageError(f"{err}; adapting learns from the video's own speech") from err
    sound_end = speech.start + speech.seconds - facts.start * facts.time_base
    seconds = min(facts.seconds, sound_end, Fraction(excerpt.read_seconds))
    if seconds < excerpt.min_seconds:
        raise StageError(
            f"{video}: has {max(0.0, float(seconds)):.1f} s of picture with sound, expected at least "
            f"{excerpt.min_seconds:g} s to adapt to, better 10 s or more"
        )
    return CutPlan(facts, speech, seconds, spread_windows(count_instants(seconds), excerpt))


def spread_windows(n_instants: int, excerpt: ExcerptParams) -> list[tuple[int, int]]:
    """Windows of ``clip_seconds`` spread evenly over so many instants; one of them all if they are few."""
    length = round(excerpt.clip_seconds * VIDEO_FPS)
    n_windows = max(1, round(excerpt.seconds / excerpt.clip_seconds))
    if n_windows * length >= n_instants:
        return [(0, n_instants)]
    firsts = np.linspace(0, n_instants - length, n_windows).round().astype(int).tolist()
    return [(first, first + length) for first in firsts]


def cut_video(
    video: Path,
    plan: CutPlan,
    out: Path,
    *,
    size: int,
    takes_speech: bool,
    model: Path,
    params: EditParams,
    excerpt: ExcerptParams,
    thresholds: ThresholdParams,
    scratch: Path,
    progress: Progress,
) -> CutResult:
    """Write a dataset of the face that ``params.face`` chooses to the folder ``out``.

    ``size`` is the side of a crop in px, ``model`` MediaPipe's face model, ``scratch`` an empty folder. Where
    the speech features tell what the mouth should do, sound that is early or late is moved to the mouth's
    time. ``progress`` receives the passes "faces" (of instants), "crops" and then "sync"; where sound is
    moved, "crops" again. Raises StageError when the face is not in sight for ``min_seconds``.
    """
    encoder = find_speech_encoder(params) if takes_speech else None  # now, not after looking for faces
    [edit_plan] = make_plans(
        video,
        plan.facts,
        plan.seconds,
        size=size,
        model=model,
        params=params,
        faces=[params.face],
        scratch=scratch,
        progress=progress,
        windows=plan.windows,
        n_threads=count_face_threads(),
    )
    spans = list(_find_spans(edit_plan, excerpt))
    n_frames = sum(len(span) for span in spans)
    if n_frames < excerpt.min_seconds * VIDEO_FPS:
        raise StageError(
            f"{video}: the face is in sight for {n_frames / VIDEO_FPS:.1f} s, expected at least "
            f"{excerpt.min_seconds:g} s to adapt to, better 10 s or more"
        )
    work = Work(CORPUS, raw=video.parent, root=scratch, out=out, cache=scratch)
    dataset_params = {
        "landmarks": {"engine": params.landmarks.engine},
        "align": asdict(params.align) | {"size": size},
        "mels": asdict(params.mels),
        **({"speech": {"encoder": params.speech.encoder}} if takes_speech else {}),
    }
    tools = versions(*shard.list_libraries(params.landmarks.engine))
    out.mkdir(parents=True, exist_ok=True)
    rows = list(_make_rows(video, plan.facts, spans))

    def write_dataset(lag: int) -> SoundRows:
        """Write all, with the sound of the mouth's time if the mouth is ``lag`` frames late."""
        # On the clock of the picture: row 0 is at its first frame.
        start = plan.facts.start * plan.facts.time_base - Fraction(lag, VIDEO_FPS)
        speech = replace(plan.speech, start=start)
        sound = compute_sound(speech, edit_plan.n_instants, encoder, params)
        with make_scratch_folder(scratch) as folder:
            partial = folder / "shard.tar"
            clips = _pack_clips(
                edit_plan,
                spans,
                sound,
                rows,
                size=size,
                blob=folder / "frames",
                tools=tools,
                progress=progress,
            )
            index = write_tar(partial, clips)
            entry = describe_shard(partial, SPLIT, 0, index)
            partial.replace(out / entry.name)
        packed = PackedShard(entry, check_index_rows(index, entry.name, f"{video}"))
        finish_dataset(work, ShardParams(codec="raw"), dataset_params, [packed], build_ledger(rows))
        return sound

    sound = write_dataset(0)
    score = None
    if sound.speech is not None and params.speech.encoder == ENCODER:
        score = _score_sync(out, spans, sound.speech, model, progress)
    if score is not None and (lag := find_lag(score, thresholds)):
        write_dataset(lag)
    return CutResult(len(spans), n_frames, score)


def _score_sync(
    shards: Path, spans: list[range], speech: NDArray[np.float16], model: Path, progress: Progress
) -> SpeakerScore | None:
    """Whether the mouth of the clips says what is heard, by some of them that are spread over the video."""
    step = -(-sum(map(len, spans)) // MAX_SYNC_FRAMES)
    chosen = [*enumerate(spans)][::step]
    n_frames = sum(len(span) for _, span in chosen)
    dataset = open_dataset(shards, hashes=False)

    def read_clips() -> Iterator[tuple[int, Frames]]:
        n_done = 0
        for number, span in chosen:
            progress("sync", n_done, n_frames)
            yield span.start, read_clip(dataset, _make_clip_id(number)).frames
            n_done += len(span)
        progress("sync", n_frames, n_frames)

    with FaceFinder(model, max_faces=1) as find:
        return score_clips(read_clips(), predict_mouth(speech), find)


def _make_clip_id(number: int) -> str:
    return f"{SPEAKER}_{number:04d}"


def _find_spans(plan: EditPlan, excerpt: ExcerptParams) -> Iterator[range]:
    """The instants of each clip: those of one face segment, in equal parts of ``clip_seconds`` at most."""
    longest = round(excerpt.clip_seconds * VIDEO_FPS)
    for index, group in groupby(range(plan.n_instants), plan.get_segment_index):
        instants = list(group)
        if index < 0 or len(instants) < VIDEO_FPS:  # less than a second
            continue
        n_parts = -(-len(instants) // longest)
        borders = np.linspace(instants[0], instants[-1] + 1, n_parts + 1).round().astype(int).tolist()
        yield from (range(first, end) for first, end in pairwise(borders))


def _make_rows(video: Path, facts: VideoFacts, spans: list[range]) -> Iterator[dict[str, object]]:
    """The ledger rows of the clips."""
    sha256 = file_sha256(video)
    for number, span in enumerate(spans):
        yield {
            "clip_id": _make_clip_id(number),
            "corpus": CORPUS,
            "speaker": SPEAKER,
            "split": SPLIT,
            "path": _make_clip_id(number),
            "sha256": sha256,
            "width": facts.width,
            "height": facts.height,
            "fps": float(facts.fps),
            "video_start": float(facts.start * facts.time_base + Fraction(span.start, VIDEO_FPS)),
            "video_seconds": len(span) / VIDEO_FPS,
            "frames": len(span),
            "notes": [],
            "stage": shard.STAGE,
            **Outcome().to_columns(),
        }


def _pack_clips(
    plan: EditPlan,
    spans: list[range],
    sound: SoundRows,
    rows: list[dict[str, object]],
    *,
    size: int,
    blob: Path,
    tools: dict[str, str],
    progress: Progress,
) -> Iterator[PackedClip]:
    """The clips, one at a time. ``blob`` is a scratch file for the frames of one clip."""
    n_total, n_done = sum(len(span) for span in spans), 0
    ledger = Rows.from_rows(rows, build_ledger([]).table.schema)
    with FrameReader(plan.video, plan.facts, plan.stamps) as reader:
        for span, row in zip(spans, ledger, strict=True):
            boxes: list[NDArray[np.int16]] = []
            with blob.open("wb") as file:

                def encode(span: range = span, boxes: list[NDArray[np.int16]] = boxes) -> Iterator[bytes]:
                    nonlocal n_done
                    for frame in read_crops(plan, reader, span, size):
                        boxes.append(frame.box)
                        n_done += 1
                        progress("crops", n_done, n_total)
                        yield encode_frame(frame.pixels, "raw")

                offsets = write_frames(file, encode())
            segment = plan.path.segments[plan.get_segment_index(span.start)]
            places = plan.source_instants[span.start : span.stop] - segment.first
            info = make_info(
                row,
                size=size,
                codec="raw",
                interpolated_frames=[],
                notes=[],
                tools=tools,
                frame_facts={
                    "frame_offsets": offsets,
                    "source_seconds": [round(float(segment.seconds[place]), 6) for place in places],
                },
            )
            first, end = MELS_PER_FRAME * span.start, MELS_PER_FRAME * span.stop
            features = None
            if sound.speech is not None:
                features = sound.speech[SPEECH_PER_FRAME * span.start : SPEECH_PER_FRAME * span.stop]
            yield PackedClip(
                row["clip_id"],
                blob.read_bytes(),
                np.stack(boxes).astype(np.int16),
                sound.mels[first:end],
                segment.matrices[places],
                info,
                features,
            )
