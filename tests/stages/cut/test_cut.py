"""The stage `cut` on a film of real people, by the command: one scene after the other, with known truth."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster

from pipeline.main import cli
from shards.checksum import file_sha256
from shards.ledger import OK, SYNCNET_FIELDS, read_ledger, write_ledger
from shards.reader import open_dataset, read_info
from shards.spans import check_spans
from shards.storage import open_storage
from stages.clips import LEDGER_NAME
from stages.cut import run as cut
from stages.cut.params import CutParams, ThresholdParams
from stages.cut.thresholds import count_costs
from stages.engine.cache import read_entry
from stages.engine.outcome import StageError
from stages.engine.stage import Context, Report, Work
from stages.landmarks import LandmarksParams, find_span_points
from stages.media import weights
from stages.media.audio import read_channels
from stages.media.clip_sound import decode_clip_sound
from stages.media.encode import AudioTrack, write_mp4
from stages.media.video import read_frames_at_25fps
from stages.metrics.face_crops import crop_faces, face_boxes
from stages.metrics.lse import Lse, compute_lse
from stages.metrics.published import load_published
from stages.metrics.syncnet import SyncNet
from stages.speech import SpeechParams
from stages.synth import SynthParams, make_corpus
from stages.synth.film_spec import FilmTruth
from tests.build import build, find_stage_summary, hash_files, pipeline
from tests.conftest import real_clips
from tests.media import read_rgb_frames
from tests.stages.metrics.weights import make_syncnet_weights

KINDS = ("speaker", "two-faces", "no-face", "lag", "music")


@pytest.fixture(scope="session")
def films(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one film of real people: scenes of which some are clips and some are none."""
    folder = tmp_path_factory.mktemp("films")
    scenes = [word for kind in KINDS for word in ("--scene", kind)]
    pipeline(
        "synth", "--style", "film", "--from", grid, "--to", folder, "--seconds", "24", "--seed", "3", *scenes
    )
    return folder


@pytest.fixture(scope="session")
def dataset(
    films: Path,
    landmarker: Path,
    speech_model: Path,
    voice_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """The work folder of the film's clips, and the summary of the command."""
    work = tmp_path_factory.mktemp("cut")
    return work, build(films, work, "--cut", "--workers", "2")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def read_truth(films: Path) -> FilmTruth:
    from pydantic import TypeAdapter

    [path] = films.glob("*.truth.json")
    return TypeAdapter(FilmTruth).validate_json(path.read_bytes())


def test_every_clip_is_of_a_scene_in_which_the_one_who_is_seen_speaks(
    films: Path, dataset: tuple[Path, dict[str, Any]]
) -> None:
    work, _ = dataset
    scenes = read_truth(films).scenes
    ledger = list(read_ledger(work / "clips.parquet"))
    assert not list(check_spans(read_ledger(work / "shards" / "ledger.parquet")))
    clips = [row for row in ledger if row["status"] == OK]
    spoken = [scene for scene in scenes if any(face.speaks for face in scene.faces)]
    found = 0
    for row in clips:
        first, last = round(row["start_seconds"] * 25), round(row["end_seconds"] * 25)
        [scene] = [
            scene for scene in scenes if scene.first_frame - 1 <= first and last <= scene.end_frame + 1
        ]
        assert any(face.speaks for face in scene.faces), f"{row['clip_id']} is of a scene of {scene.kind}"
        assert row["lag_frames"] == pytest.approx(-scene.lag_ms / 40, abs=1.5), row["clip_id"]
        assert row["sound_shift"] == -row["lag_frames"] / 25
        found += 1
    assert found >= 0.8 * len(spoken), f"{found} clips of {len(spoken)} scenes"


def test_a_sample_says_where_it_is_from_and_how_its_sound_was_moved(
    dataset: tuple[Path, dict[str, Any]],
) -> None:
    work, _ = dataset
    rows = [row for row in read_ledger(work / "clips.parquet") if row["status"] == OK and row["sound_shift"]]
    assert rows, "a scene with a lag became a clip"
    info = read_info(open_dataset(open_storage(str(work / "shards"))), rows[0]["clip_id"])
    for name in ("start_seconds", "end_seconds", "track", "lag_frames", "sound_shift", "sync_confidence"):
        assert info[name] == rows[0][name]
    assert info["source_start"] == rows[0]["video_start"]


def test_one_worker_and_a_cluster_write_the_same_bytes_and_thresholds_measure_nothing_again(
    films: Path, dataset: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, summary = dataset
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        for name, option in (
            ("one", ("--workers", "1")),
            ("cluster", ("--scheduler", cluster.scheduler_address)),
        ):
            other = build(films, tmp_path / name, "--cut", *option)
            assert other["digest"] == summary["digest"], name
            assert hash_files(tmp_path / name / "shards") == hash_files(work / "shards"), name
    params = tmp_path / "params.yaml"
    params.write_text("cut: {thresholds: {min_sync_confidence: 1.5}}\n")
    cache = ("--cache", work / ".cache", "--params", params, "--cut", "--workers", "1")
    told = pipeline("clips", "--dataset", "folder", "--raw", films, "--work", tmp_path / "strict", *cache)
    told = pipeline(
        "cut", "--dataset", "folder", "--raw", films, "--work", tmp_path / "strict", "--json", *cache, code=1
    )
    assert find_stage_summary(json.loads(told.splitlines()[0]), "cut")["clips_computed"] == 0
    words = ["landmarks", "--dataset", "folder", "--raw", f"{films}", "--work", f"{tmp_path / 'strict'}"]
    told = CliRunner().invoke(cli, [*words, "--cut"]).output
    assert "was made from other files or with other params" in told, "its thresholds were others"
    strict = Work("folder", films, tmp_path / "strict", tmp_path / "out", work / ".cache")
    thresholds = ThresholdParams(min_sync_confidence=1.5)
    settings = make_settings(thresholds=thresholds)
    assert len(cut.read_spans(strict, settings))
    other_faces = replace(settings, landmarks=LandmarksParams(max_gap_frames=4))
    with pytest.raises(StageError, match="from other files or with other params"):
        cut.read_spans(strict, other_faces)
    monkeypatch.setattr(cut, "_link_points", interrupt)
    with pytest.raises(KeyboardInterrupt):
        cut_again(strict)
    monkeypatch.undo()
    with pytest.raises(StageError, match="from other files or with other params"):
        cut.read_spans(strict, settings)
    cut_again(strict, thresholds=thresholds)
    files = list(read_ledger(tmp_path / "strict" / "clips" / LEDGER_NAME))
    write_ledger(
        tmp_path / "strict" / "clips" / LEDGER_NAME, [{**row, "speaker": "another"} for row in files]
    )
    with pytest.raises(StageError, match="from other files or with other params"):
        cut.read_spans(strict, settings)
    rows = list(read_ledger(tmp_path / "strict" / "clips.parquet"))
    assert sum(row["frames"] for row in rows) == read_truth(films).n_frames
    assert {row["code"] for row in rows if row["sync_confidence"] is not None} == {"silent_face"}


def test_files_that_were_cut_are_taken_neither_whole_nor_as_other_params_would_cut_them(
    tmp_path: Path,
) -> None:
    make_corpus(tmp_path / "raw", SynthParams(speakers=1, clips=1, seconds=0.8, style="folder"))
    words = ["--dataset", "folder", "--raw", f"{tmp_path / 'raw'}", "--work", f"{tmp_path / 'work'}",
             "--workers", "1"]  # fmt: skip
    pipeline("clips", *words, "--cut")
    (tmp_path / "work" / "cut").mkdir()
    (tmp_path / "work" / "cut" / LEDGER_NAME).write_bytes(b"spans")
    told = CliRunner().invoke(cli, ["mels", *words]).output
    assert "the files were cut, so every later stage needs --cut" in told and "Traceback" not in told
    told = CliRunner().invoke(cli, ["mels", *words, "--cut"]).output
    assert "was made from other files or with other params; run `pipeline cut" in told
    pipeline("cut", *words)
    assert not (tmp_path / "work" / "cut" / LEDGER_NAME).exists()
    files = list(read_ledger(tmp_path / "work" / "clips" / LEDGER_NAME))
    assert list(read_ledger(tmp_path / "work" / "clips.parquet")) == files
    pipeline("mels", *words)


def make_settings(**changes: Any) -> cut.CutSettings:
    return cut.CutSettings(CutParams(enabled=True, **changes), LandmarksParams(), SpeechParams())


def cut_again(work: Work, **changes: Any) -> Report:
    """Cut with other params; what was measured before is in the cache."""
    return cut.run(work, (), make_settings(**changes), Context())


def test_syncnet_gives_a_second_opinion_on_who_speaks(
    films: Path, dataset: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are random ones of the same shapes: the authors' are not ours to ship."""
    built, _ = dataset
    network = tmp_path / "weights" / weights.NETWORKS["syncnet"].name
    network.parent.mkdir()
    torch.save(make_syncnet_weights(), network)
    known = replace(weights.NETWORKS["syncnet"], sha256=file_sha256(network))
    monkeypatch.setattr(weights, "NETWORKS", {**weights.NETWORKS, "syncnet": known})
    monkeypatch.setenv(known.environment, str(network.parent))
    shutil.copytree(built / "clips", tmp_path / "work" / "clips")
    work = Work("folder", films, tmp_path / "work", tmp_path / "out", built / ".cache")

    assert cut_again(work).clips_computed == 0
    plain = read_ledger(work.ledger)
    assert SYNCNET_FIELDS.keys().isdisjoint(plain.table.column_names)
    assert hash_files(work.root / "cut") == hash_files(built / "cut")

    report = cut_again(work, second_opinion="syncnet")
    ledger = read_ledger(work.ledger)
    assert ledger.table.drop_columns(list(SYNCNET_FIELDS)) == plain.table, "a limit of 0 drops nothing"
    scored = [row for row in ledger if row["syncnet_confidence"] is not None]
    assert len(scored) == report.clips_computed > 1
    assert {row["clip_id"] for row in scored} >= {row["clip_id"] for row in plain if row["status"] == OK}
    moved = [row for row in scored if row["status"] == OK and row["start_seconds"] and row["lag_frames"]]
    row = min(moved, key=lambda row: row["frames"])
    place = films / row["path"], row["video_start"], row["frames"]
    points = read_entry(find_span_points(work, row["clip_id"]))[1]["points"]
    squares = crop_faces((frame.image for frame in read_frames_at_25fps(*place)), face_boxes(points))
    syncnet = load_published(SyncNet, network)
    score = compute_lse(squares, decode_clip_sound(*place), syncnet.embed_lips, syncnet.embed_speech)
    assert isinstance(score, Lse)
    assert row["syncnet_confidence"] == pytest.approx(score.confidence, abs=6e-4)
    assert row["syncnet_lag"] == score.offset

    confidences = sorted({row["syncnet_confidence"] for row in scored if row["status"] == OK})
    limit = float(np.mean(confidences[-2:]))  # that one clip reaches
    params = CutParams(second_opinion="syncnet", thresholds=ThresholdParams(min_syncnet_confidence=limit))
    strict = cut_again(work, second_opinion="syncnet", thresholds=params.thresholds)
    assert strict.clips_computed == 0
    told = [row["reason"] for row in read_ledger(work.ledger) if "SyncNet" in (row["reason"] or "")]
    [cost] = [
        item for item in count_costs(ledger, params).thresholds if item.name == "min_syncnet_confidence"
    ]
    assert len(told) == cost.in_sequence.clips == report.counts[OK] - 1
    assert all(f"expected {limit:g} or more" in reason for reason in told)


def test_the_frames_of_a_dissolve_and_of_a_frozen_picture_are_in_no_clip(
    grid: Path, landmarker: Path, speech_model: Path, voice_model: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """s1, over whom s2 is faded in during ten frames around a chunk's border, and who then freezes."""
    monkeypatch.setattr(cut, "CHUNK_FRAMES", 70)
    clips = [sorted((grid / person).glob("*.mpg"))[0] for person in ("s1", "s2")]
    before, after = (np.stack(read_rgb_frames(clip)) for clip in clips)
    shares = np.arange(1, 11)[:, None, None, None] / 11
    mixed = (before[65:75] * (1 - shares) + after[:10] * shares).round().astype(np.uint8)
    frames = [*before[:65], *mixed, *after[10:45], *(30 * [after[45]]), *after[45:75]]
    speech = [read_channels(clip, 0.0, 48_000)[:1].T for clip in (*clips, clips[1])]
    track = AudioTrack([np.concatenate(speech)[: len(frames) * 640]], 16_000, 1)
    write_mp4(tmp_path / "raw" / "film.mp4", frames, fps=Fraction(25), audio=track, redrawn=False)
    work = Work("folder", tmp_path / "raw", tmp_path / "work", tmp_path / "out", tmp_path / "cache")
    pipeline("clips", "--dataset", "folder", "--raw", work.raw, "--work", work.root, "--cut")
    cut_again(
        work, min_seconds=1.2, min_pause_seconds=2.0, thresholds=ThresholdParams(min_sync_confidence=-2)
    )
    rows = list(read_ledger(work.ledger))
    assert sum(row["frames"] for row in rows) == len(frames)
    codes = [row["code"] for row in rows for _ in range(row["frames"])]
    assert set(codes[66:74]) == {"too_short"} and set(codes[112:138]) == {"still"}, codes
    assert {codes[40], codes[90]} == {""}, codes


def test_a_real_voice_over_and_spliced_sentences_give_no_clip(
    landmarker: Path, speech_model: Path, voice_model: Path, tmp_path: Path
) -> None:
    """NASA's film, over which nobody who is seen speaks, and two addresses made of words from many places."""
    work = Work("folder", real_clips("wild"), tmp_path / "work", tmp_path / "out", tmp_path / "cache")
    pipeline(
        "clips", "--dataset", "folder", "--raw", work.raw, "--work", work.root, "--cut", "--workers", "1"
    )
    cut_again(work)
    rows = list(read_ledger(work.ledger))
    assert {row["path"].split("_")[0] for row in rows} == {"nasa", "obama"}
    assert not [row["clip_id"] for row in rows if row["status"] == OK]
    assert not list(check_spans(read_ledger(work.ledger)))
