"""One clip from a video file to a sample of a shard: what the dataset stages do, on one page. Start here.

The stages do the same for many files at once: in a sandbox, with a cache, in parts and on many workers. None
of that changes a byte, which tests/pipeline/test_one_clip.py checks.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.params import Params
from shards.ledger import OK
from shards.schema import ClipSample
from stages import align, clips, landmarks, mels, shard, speech
from stages.engine.cache import versions
from stages.engine.outcome import Drop
from stages.media import audio, crops, video, weights
from stages.media.faces import FaceFinder


def clip_from_file(
    path: Path, params: Params, *, corpus: str = "folder", raw: Path | None = None
) -> ClipSample:
    """Build the sample of one video file. ``raw`` is the corpus's folder, by default the file's own.

    The sample's ``info`` lacks ``frame_offsets``, which say where encoded frames are in a shard. Raises Drop,
    with the reason that the ledger would have, when the file cannot be used.
    """
    raw = (raw or path.parent).resolve()

    # Stage 1: the file's facts, and who says what.
    file = clips.RawFile(PurePosixPath(path.resolve().relative_to(raw).as_posix()))
    facts = clips.probe_file(path, corpus, params.clips)
    row = clips.make_row(file, clips.hash_file(path), facts, corpus, raw.name, params.clips)
    if row["status"] != OK:
        raise Drop(row["code"], row["reason"])
    start, n_frames = row["video_start"], row["frames"]

    # Stage 2: 478 face points in every frame, at 25 fps.
    model = weights.find(weights.LANDMARKER, params.landmarks.model)
    with FaceFinder(model, params.landmarks.max_faces, params.landmarks.engine) as find_faces:
        frames = video.ClipFrames(partial(video.read_frames_at_25fps, path, start, n_frames))
        face = landmarks.find_points(frames, find_faces, params.landmarks)

    # Stage 3: a matrix to the crop and a mask box for every frame.
    align.check_length(n_frames, params.align.size)
    matrices, boxes = align.align_clip(face.points, params.align, face.jumps)
    align.check_boxes(boxes)

    # Stage 4: two mel rows for every frame.
    sound, sound_notes = audio.mix_to_mono(audio.read_channels(path, start, mels.count_samples(n_frames)))
    mel_rows = mels.compute_mel_rows(sound, params.mels)

    # Beside it, where an encoder is chosen: two rows of speech features for every frame.
    encoder = speech.find_model(params.speech)
    features = None if encoder is None else speech.compute_speech_rows(sound, speech.load_encoder(encoder))

    # Stage 5: the crops.
    size, supersample = params.align.size, crops.compute_supersample(matrices, params.shard.max_supersample)
    source_frames = list(video.read_frames_at_25fps(path, start, n_frames))
    pixels = np.stack(list(crops.crop_frames(iter(source_frames), matrices, size, supersample)))
    info = shard.make_info(
        row,
        size=size,
        codec=params.shard.codec,
        interpolated_frames=np.flatnonzero(~face.is_found).tolist(),
        notes=[*row["notes"], *face.notes, *sound_notes],
        tools=versions(*shard.list_libraries(params.landmarks.engine)),
        frame_facts={"source_seconds": [round(frame.seconds, 6) for frame in source_frames]},
    )
    return ClipSample(row["clip_id"], pixels, boxes, mel_rows, matrices, info, features)
