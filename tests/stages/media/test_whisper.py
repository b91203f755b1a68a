"""Whisper's encoder against another implementation, and the files that its weights are read from."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from librosa.filters import mel
from safetensors.numpy import load_file, save_file

from stages.engine.outcome import StageError
from stages.media import weights
from stages.media.whisper import (
    HOP_SAMPLES,
    N_FFT,
    WhisperEncoder,
    compute_log_power,
    compute_positions,
    load_whisper,
    make_mel_filters,
    scale_log_power,
)
from stages.media.whisper_weights import (
    N_BLOCKS,
    OFFICIAL_BLOCK_PARTS,
    OFFICIAL_PREFIX,
    SHAPES,
    WIDTH,
    _name_in_ct2,
    convert_encoder,
)
from tests.stages.media.whisper_reference import (
    CLIPS,
    LOG_MELS,
    MADE,
    RATE,
    REFERENCE,
    make_voice,
    read_voice,
)


def compute_published_mels(sound: np.ndarray) -> np.ndarray:
    """As the published code: the ends are mirrored, the last row is left out, the range is the whole's."""
    log_power = compute_log_power(np.pad(sound, N_FFT // 2, mode="reflect"))[:-1]
    return scale_log_power(log_power, log_power.max())


def relative_error(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(values - expected) / np.linalg.norm(expected))


def check_features(sound: np.ndarray, encoder: WhisperEncoder, expected: np.ndarray) -> None:
    log_mels = compute_published_mels(sound)
    features = encoder(torch.from_numpy(log_mels.T[None].copy()))[0].numpy()
    assert features.shape == expected.shape == (len(log_mels) // 2, WIDTH)
    assert relative_error(features, expected.astype(np.float32)) < 1e-3
    # The largest features are some 12, where float16 has steps of 0.008.
    assert features == pytest.approx(expected.astype(np.float32), abs=0.03)


def test_log_mels_and_features_are_those_of_another_implementation(speech_model: Path) -> None:
    reference = np.load(REFERENCE)
    assert pytest.approx(reference[LOG_MELS], abs=2e-5) == compute_published_mels(make_voice()).T
    check_features(make_voice(), load_whisper(speech_model), reference[MADE])


def test_features_of_real_clips_are_those_of_another_implementation(
    grid: Path, crema_d: Path, speech_model: Path
) -> None:
    reference = np.load(REFERENCE)
    for name in CLIPS:
        check_features(read_voice(grid.parent / name), load_whisper(speech_model), reference[name])


def test_the_filters_are_librosas_and_the_encoder_has_the_published_size() -> None:
    assert np.array_equal(make_mel_filters(), mel(sr=RATE, n_fft=400, n_mels=80))
    n_values = sum(value.numel() for value in WhisperEncoder().state_dict().values())
    # Of these, the published count has the positions of 30 s.
    assert n_values + 1500 * WIDTH == 8_209_920
    assert {name: tuple(value.shape) for name, value in WhisperEncoder().state_dict().items()} == SHAPES


def test_a_tone_is_loudest_in_its_band_at_its_time() -> None:
    t = np.arange(RATE) / RATE
    tone = np.where(np.abs(t - 0.5) < 0.05, np.sin(2 * np.pi * 1000 * t), 0).astype(np.float32)
    log_power = compute_log_power(np.pad(tone, N_FFT // 2))
    row, band = np.unravel_index(log_power.argmax(), log_power.shape)
    assert 45 <= row <= 55
    centres = mel(sr=RATE, n_fft=400, n_mels=80).argmax(axis=1) * RATE / N_FFT
    assert centres[band] == pytest.approx(1000, abs=RATE / N_FFT)


def test_log_mels_and_convolutions_move_with_the_sound() -> None:
    """What follows does not: positions are counted from the start of what the encoder is given."""
    sound = np.pad(make_voice(), (RATE, RATE))
    first, later = (compute_log_power(np.pad(sound, (n * HOP_SAMPLES, 0))) for n in (0, 10))
    assert later[10:] == pytest.approx(first, abs=1e-5)
    encoder = WhisperEncoder()
    with torch.no_grad():
        a, b = (
            encoder.conv_2(torch.relu(encoder.conv_1(torch.from_numpy(x.T[None])))) for x in (first, later)
        )
    assert b[0, :, 7:100].numpy() == pytest.approx(a[0, :, 2:95].numpy(), abs=1e-4)


def test_positions_are_sines_and_cosines_of_geometric_wavelengths() -> None:
    positions = compute_positions(50, WIDTH).numpy()
    place = np.arange(50)
    assert positions[:, 0] == pytest.approx(np.sin(place), abs=1e-5)
    assert positions[:, WIDTH // 2] == pytest.approx(np.cos(place), abs=1e-5)
    assert positions[:, WIDTH // 2 - 1] == pytest.approx(np.sin(place / 10_000), abs=1e-6)


# The files


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    """An encoder that nobody has trained. Keys have no bias."""
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in SHAPES.items()}
    for block in range(N_BLOCKS):
        tensors[f"blocks.{block}.query_key_value.bias"][WIDTH : 2 * WIDTH] = 0
    return tensors


def write_ct2(path: Path, values: dict[str, np.ndarray]) -> Path:
    """The encoder as CTranslate2 stores it, after a tensor of the decoder and a number."""

    def text(name: str) -> bytes:
        return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"

    def entry(name: str, shape: tuple[int, ...], dtype: int, data: bytes) -> bytes:
        sides = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
        return text(name) + sides + struct.pack("<BI", dtype, len(data)) + data

    tensors = [
        entry("decoder/embeddings/weight", (3, 2), 4, bytes(12)),
        entry("encoder/num_heads", (), 2, b"\6\0"),
    ]
    tensors += [entry(_name_in_ct2(name), value.shape, 4, value.tobytes()) for name, value in values.items()]
    header = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    path.write_bytes(header + b"".join(tensors) + struct.pack("<I", 0))
    return path


def write_official(path: Path, values: dict[str, np.ndarray], dtype: type = np.float32) -> Path:
    """The encoder as the official file names its parts, with others around it."""
    tensors: dict[str, np.ndarray] = {"model.decoder.embed_tokens.weight": np.ones((4, 2), dtype)}
    outer = {"conv_1": "conv1", "conv_2": "conv2", "norm": "layer_norm"}
    for name, value in values.items():
        layer, leaf = name.rsplit(".", 1)
        *place, part = layer.split(".")
        prefix = OFFICIAL_PREFIX + (f"layers.{place[1]}." if place else "")
        if part == "query_key_value":
            for each, third in zip("qkv", np.split(value, 3), strict=True):
                if (each, leaf) != ("k", "bias"):
                    tensors[f"{prefix}self_attn.{each}_proj.{leaf}"] = third.astype(dtype)
        else:
            tensors[f"{prefix}{OFFICIAL_BLOCK_PARTS[part] if place else outer[part]}.{leaf}"] = value.astype(
                dtype
            )
    save_file(tensors, path, {"format": "pt"})
    return path


def test_both_published_files_give_the_same_bytes_which_safetensors_reads(
    values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    sources = [
        write_ct2(tmp_path / "model.bin", values),
        write_official(tmp_path / "model.safetensors", values),
        write_official(tmp_path / "half.safetensors", values, np.float16),
    ]
    written = []
    for number, source in enumerate(sources):
        convert_encoder(source, tmp_path / f"{number}")
        written.append((tmp_path / f"{number}").read_bytes())
    assert len(set(written)) == 1
    tensors = load_file(tmp_path / "0")
    assert tensors.keys() == values.keys()
    assert all(np.array_equal(tensors[name], values[name]) for name in values)
    assert not load_whisper(tmp_path / "0").training


def put(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + data + content[at + len(data) :]


N_TENSORS_AT = 4 + 2 + 12 + 4  # after the version, the specification and its revision
FIRST = N_TENSORS_AT + 4  # the first tensor's name
FIRST_SIDES = FIRST + 2 + len("decoder/embeddings/weight") + 1
LARGEST = struct.pack("<I", 2**32 - 1)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda content: content[:5], "ends too early|holds"),
        (lambda content: content[: len(content) // 2], "it ends in b'encoder/"),
        (lambda content: content[: FIRST + 10], "ends too early"),
        (put(4, struct.pack("<H", 65535)), "a name claims 65535 bytes, expected at most 200"),
        (put(6, b"Whosper"), "it is 'Whosperpec' of version 6|WhisperSpec"),
        (put(N_TENSORS_AT, LARGEST), "claims 4294967295 tensors, expected at most 1000"),
        (put(N_TENSORS_AT, struct.pack("<I", 20)), "is missing"),
        (put(FIRST, struct.pack("<H", 60000)), "a name claims 60000 bytes"),
        (put(FIRST_SIDES, b"\xff"), "claims 255 sides, expected at most 4"),
        (put(FIRST_SIDES + 1, LARGEST), "has 12 bytes, not those of"),
        (put(FIRST_SIDES + 9, b"\x63"), "dtype 99"),
        (lambda content: content.replace(b"encoder/conv1/weight\0\3" + struct.pack("<3IB", 384, 80, 3, 4),
                                         b"encoder/conv1/weight\0\3" + struct.pack("<3IB", 384, 80, 3, 5)),
         r"conv_1.weight is \[384, 80, 3\] of dtype 5, expected \[384, 80, 3\] of 4"),
        (lambda content: content.replace(b"encoder/conv1/bias\0\1" + struct.pack("<I", 384),
                                         b"encoder/conv1/bias\0\2" + struct.pack("<I", 384)),
         "conv1/bias"),
    ],
)  # fmt: skip
def test_an_altered_model_bin_is_refused_in_one_line_without_memory_for_its_claims(
    alter: Callable[[bytes], bytes], words: str, values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = write_ct2(tmp_path / "model.bin", values)
    content = source.read_bytes()
    altered = alter(content)
    assert altered != content
    source.write_bytes(altered)
    del content, altered
    check_refusal(source, words, tmp_path)


DAMAGED = "Error while deserializing header"  # of safetensors


def check_refusal(source: Path, words: str, folder: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StageError, match=words) as caught:
            convert_encoder(source, folder / "out")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"{source}: holds no encoder of whisper-tiny.en (")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert peak < 2 * source.stat().st_size + 2**20
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", DAMAGED),
        (struct.pack("<Q", 2**63), "its header has more than 1,048,576 bytes"),
        (struct.pack("<Q", 2) + b"[]", DAMAGED),
        (struct.pack("<Q", 2) + b"{}", r"does not contain tensor model\.encoder\."),
        (struct.pack("<Q", 5) + b"{\xff}  ", "holds no encoder"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "holds no encoder"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(header: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(header)
    check_refusal(tmp_path / "model.safetensors", words, tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dtype": "I32"}, r"conv1\.weight is I32 \[384, 80, 3\], expected F32 \[384, 80, 3\]"),
        ({"dtype": "I64"}, DAMAGED),
        ({"dtype": ["F32"]}, DAMAGED),
        ({"dtype": "x\n" * 10_000}, DAMAGED),
        ({"shape": [384, 240]}, r"conv1\.weight is F32 \[384, 240\], expected F32 \[384, 80, 3\]"),
        ({"shape": [384, 80, 4]}, DAMAGED),
        ({"shape": None}, DAMAGED),
        ({"data_offsets": [0, 2**60]}, DAMAGED),
        ({"data_offsets": [2**62, 2**62 + 368640]}, DAMAGED),
        ({"data_offsets": [-4, 368636]}, DAMAGED),
        ({"data_offsets": [0.5, 368640.5]}, DAMAGED),
        ({"data_offsets": "everywhere"}, DAMAGED),
    ],
)
def test_an_altered_official_file_is_refused(
    fields: dict[str, object], words: str, values: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = write_official(tmp_path / "model.safetensors", values)
    content = source.read_bytes()
    (n_bytes,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + n_bytes])
    entries["model.encoder.conv1.weight"] |= fields
    header = json.dumps(entries).encode()
    source.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + n_bytes :])
    del content
    check_refusal(source, words, tmp_path)


def test_other_weights_are_refused_and_nothing_is_kept(
    values: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    source = write_ct2(tmp_path / "model.bin", values)
    with pytest.raises(
        StageError, match=r"speech.model: .*model.bin holds other values than those of whisper"
    ):
        weights.find(weights.SPEECH_ENCODER, str(source))
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(StageError, match="names nowhere, which is no file"):
        weights.find(weights.SPEECH_ENCODER, "nowhere")


def test_the_package_and_the_kept_file_hold_the_same_weights(
    speech_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights.find(weights.SPEECH_ENCODER, str(speech_model)) == speech_model
    # What is kept is converted from either published form; here it is put into both and read back.
    values = load_file(speech_model)
    monkeypatch.setattr(weights, "cache_folder", lambda: tmp_path / "cache")
    for source in (
        write_ct2(tmp_path / "model.bin", values),
        write_official(tmp_path / "m.safetensors", values),
    ):
        kept = weights.find(weights.SPEECH_ENCODER, str(source))
        assert kept.read_bytes() == speech_model.read_bytes()
