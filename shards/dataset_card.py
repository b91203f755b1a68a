"""The card of a dataset, for people and for other programs, beside its ``dataset.json``.

README.md         what is in it, sources and licences, consent, what was dropped and why. Its front matter is
                  for Hugging Face: with it ``datasets.load_dataset(FOLDER)`` gives the splits
croissant.json    the files and tables as Croissant 1.1 (``shards.croissant``)

Both depend on the dataset and the options alone, and are no part of the dataset: its digest stays as it is,
and no reader of ours opens them. Names, licences and reasons come from strangers: they are escaped for
Markdown, and PyYAML and json quote them. Reasons lose the folders of the machine that made them; what
somebody stated as a licence stays as it is.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from shards.atomic import write_atomically
from shards.croissant import (
    CROISSANT_NAME,
    MemberFormat,
    Publication,
    describe_dataset,
    list_member_formats,
)
from shards.errors import MAX_MESSAGE_LETTERS, hide_paths, make_printable, shorten, shorten_message
from shards.files import read_file
from shards.index import DATASET_NAME, LEDGER_NAME, SPEECH_FIELDS, ShardEntry
from shards.ledger import OK, SPAN_FIELDS, count_by_code, get_code, has_spans, select_unusable
from shards.reader import Dataset, open_dataset
from shards.schema import (
    AFFINE_MEMBER,
    BOXES_MEMBER,
    JSON_MEMBER,
    MELS_MEMBER,
    SPEECH_MEMBER,
    VIDEO_FPS,
    SampleInfo,
    ShardError,
    get_frames_member,
)
from shards.sources import KNOWN_LICENCES, NOT_STATED, DataSource, read_sources
from shards.spans import count_files, list_unknown, sum_seconds
from shards.table import Rows

CARD_NAME = "README.md"
MARK = "Written by `pipeline card`"  # in both files: others of their names are not replaced
MAX_BYTES = 2**26  # of a file that may be replaced: croissant.json has 700 bytes a shard
MAX_CODES = 100  # in the table of reasons

# Inline Markdown and HTML. The marks that begin a block are harmless within a line.
MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>&|~$@#])")
HUB_SPLIT = re.compile(r"[A-Za-z0-9_]{1,100}")  # as `datasets` allows; and no sign of a glob pattern
SHARD_NUMBER = r"-[0-9]{5,}-[0-9a-f]{12}\.tar"
HUB_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
LARGEST_HUB_SIZE = "1M<n<10M"

# Keys of the json member (docs/shards.md) but `tools`, whose own keys are names of libraries.
JSON_FIELDS: dict[str, pa.DataType] = {
    **dict.fromkeys(("schema_version", "frames", "size"), pa.int32()),
    **dict.fromkeys(
        ("clip_id", "corpus", "speaker", "sentence", "emotion", "level", "split", "codec", "source"),
        pa.string(),
    ),
    "source_sha256": pa.string(),
    **dict.fromkeys(("source_fps", "source_start"), pa.float64()),
    "source_size": pa.list_(pa.int32()),
    "source_seconds": pa.list_(pa.float64()),
    "frame_offsets": pa.list_(pa.int64()),
    "interpolated_frames": pa.list_(pa.int32()),
    "notes": pa.list_(pa.string()),
}
# Of a clip that was cut out of a file.
SPAN_JSON_FIELDS = {name: kind for name, kind in SPAN_FIELDS.items() if name in SampleInfo.model_fields}

PERSONAL_DATA = (
    "Every clip shows the face and holds features of the voice of a person. Whether and to what these people "
    "agreed is known to the sources, not to this description."
)
CONSENT = (
    f"{PERSONAL_DATA} An agreement to be filmed is none to be re-voiced.",
    "Train only on what the licences or the people allow. Where the GDPR applies you need a reason to "
    f"process these data, and people can have theirs deleted: `{LEDGER_NAME}` names the source file of each "
    "clip. Some licences bind what is made from the clips, such as models.",
    "Do not make a person say what they did not agree to, and deceive nobody about who said what: no fraud, "
    "no news that passes as real, no harassment, no sexual pictures, no passing of checks of identity. Show "
    "drawn mouths together with a visible note that the video is edited. redub's page "
    "`docs/responsible-use.md` has these rules in full.",
)


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """What both files say."""

    dataset: Dataset
    name: str
    sources: Sequence[DataSource]
    members: Sequence[MemberFormat]
    codec: str
    counts: Mapping[str, int]  # rows of the ledger by code, OK first
    reasons: Mapping[str, str]  # one of each code
    ledger: Rows

    @property
    def entries(self) -> list[ShardEntry]:
        return list(self.dataset.shards.values())

    @property
    def has_spans(self) -> bool:
        return has_spans(self.ledger)

    @property
    def has_speech(self) -> bool:
        return SPEECH_MEMBER in (member.name for member in self.members)


def write_dataset_card(folder: Path, publication: Publication) -> list[Path]:
    """Write both files into the folder of a dataset; return their paths.

    Raises ShardError for a folder that holds no dataset, for one whose splits Hugging Face cannot name, and
    when a file of these names is there that was not written here.
    """
    paths = [folder / CARD_NAME, folder / CROISSANT_NAME]
    facts = collect_facts(folder)
    texts = [format_card(facts), format_croissant(facts, publication)]
    for path in paths:
        _check_replaceable(path)
    for path, text in zip(paths, texts, strict=True):
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8", newline="\n")
    return paths


def collect_facts(folder: Path) -> DatasetFacts:
    """Read a dataset's tables. Raises ShardError."""
    dataset = open_dataset(folder, hashes=False)
    manifest, path = dataset.manifest, folder / DATASET_NAME
    for key in ("codec", "size", "n_mels"):
        if manifest.get(key) is None:
            raise ShardError(f"{path}: states no {key}; build the dataset again")
    if not dataset.shards:
        raise ShardError(f"{path}: has no clips, so there is nothing to describe")
    for entry in dataset.shards.values():
        if not HUB_SPLIT.fullmatch(entry.split):
            raise ShardError(
                f"{path}: split {shorten(entry.split)}, expected letters of ASCII, digits and _, which is "
                "what Hugging Face takes as one"
            )
        if not re.fullmatch(re.escape(entry.split) + SHARD_NUMBER, entry.name):
            raise ShardError(
                f"{path}: shard {shorten(entry.name)}, expected {entry.split}-NNNNN-HASH.tar by its split"
            )
    ledger = dataset.ledger()
    reasons: dict[str, str] = {}
    for row in select_unusable(ledger).select_columns("code", "status", "reason"):
        reasons.setdefault(get_code(row), shorten_message(hide_paths(row["reason"] or "")))
    with_speech = SPEECH_FIELDS[0].name in dataset.clips.table.column_names
    return DatasetFacts(
        dataset,
        make_printable(str(manifest.get("dataset") or "dataset"))[:MAX_MESSAGE_LETTERS],
        read_sources(manifest),
        list_member_formats(manifest["codec"], manifest["size"], manifest["n_mels"], with_speech=with_speech),
        manifest["codec"],
        count_by_code(ledger),
        reasons,
        ledger,
    )


def format_croissant(facts: DatasetFacts, publication: Publication) -> str:
    """The content of ``croissant.json``."""
    content = describe_dataset(
        facts.dataset.manifest,
        facts.sources,
        facts.members,
        publication,
        name=facts.name,
        text=f"{_summarize(facts)} {MARK} of redub.",
        personal_data=PERSONAL_DATA,
        ledger_schema=facts.ledger.table.schema,
    )
    return json.dumps(content, indent=1) + "\n"


def format_card(facts: DatasetFacts) -> str:
    """The content of ``README.md``."""
    front_matter = yaml.safe_dump(make_front_matter(facts), sort_keys=False, allow_unicode=True, width=10_000)
    blocks = [
        f"<!-- {MARK} of redub, and replaced by it. Remove this line to keep a text of your own. -->",
        f"# {escape_markdown(facts.name)}: talking faces, cropped and aligned",
        _summarize(facts, escape=True),
        _format_table(("split", "clips", "frames", "speakers", "shards", "minutes"), _count_splits(facts)),
        "## Read it",
        _format_example(facts),
        f"A clip has T frames at {VIDEO_FPS} a second. Its members:",
        _format_table(
            ("member", "what it is"), [(f"`{member.name}`", member.text) for member in facts.members]
        ),
        f"`{DATASET_NAME}` has the sha256 of every file and all params of the build, `{CROISSANT_NAME}` "
        "describes the files and tables as Croissant 1.1. The digest of this dataset is "
        f"`{facts.dataset.manifest['digest']}`.",
        "## Sources and licences",
        _format_table(
            ("source", "licence", "citation"),
            [(source.name, source.licence, source.citation or NOT_STATED) for source in facts.sources],
            escape=True,
        ),
        "## Consent",
        *CONSENT,
        "## What was left out, and why",
        *_describe_losses(facts),
    ]
    return f"---\n{front_matter}---\n\n" + "\n\n".join(blocks) + "\n"


def make_front_matter(facts: DatasetFacts) -> dict[str, Any]:
    """What Hugging Face reads of a card: licence, tags, and which files are which split."""
    n_clips = len(facts.dataset.clips)
    return {
        "pretty_name": facts.name,
        "license": _list_hub_licences(facts.sources),
        "task_categories": ["other"],
        "tags": ["webdataset", "croissant", "talking-face", "lip-sync", "speech-driven-video-editing"],
        "size_categories": [next((name for limit, name in HUB_SIZES if n_clips < limit), LARGEST_HUB_SIZE)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}-*.tar"} for split in _list_splits(facts)],
            }
        ],
        "dataset_info": {"config_name": "default", "features": _list_features(facts)},
    }


def escape_markdown(text: str) -> str:
    """A stranger's text as one line of Markdown that shows its letters."""
    return MARKDOWN_SIGNS.sub(r"\\\1", make_printable(text))


def _list_hub_licences(sources: Iterable[DataSource]) -> list[str]:
    names = []
    for source in sources:
        known = KNOWN_LICENCES.get(source.licence)
        names.append(known.hub_id if known else "unknown" if source.licence == NOT_STATED else "other")
    return sorted(set(names))


def _list_features(facts: DatasetFacts) -> list[dict[str, Any]]:
    """The members' types, in the words of `datasets`.

    It would guess them from five clips: frames.webp as one picture, frames.raw as sound, and a list that is
    empty in all five as one of nulls, which fails at the first clip where it is not.
    """
    json_fields = JSON_FIELDS | (SPAN_JSON_FIELDS if facts.has_spans else {})
    features: dict[str, dict[str, Any]] = {
        AFFINE_MEMBER: {"list": {"list": {"list": "float32"}}},
        BOXES_MEMBER: {"list": {"list": "int16"}},
        get_frames_member(facts.codec): {"dtype": "binary"},
        JSON_MEMBER: {
            "struct": [{"name": name, **_describe_type(kind)} for name, kind in json_fields.items()]
        },
        MELS_MEMBER: {"list": {"list": "float32"}},
        **({SPEECH_MEMBER: {"list": {"list": "float16"}}} if facts.has_speech else {}),
        "__key__": {"dtype": "string"},
        "__url__": {"dtype": "string"},
    }
    return [{"name": name, **feature} for name, feature in features.items()]


def _describe_type(kind: pa.DataType) -> dict[str, str]:
    value = kind.value_type if pa.types.is_list(kind) else kind
    name = "float64" if pa.types.is_float64(value) else str(value)
    return {"list": name} if pa.types.is_list(kind) else {"dtype": name}


def _summarize(facts: DatasetFacts, *, escape: bool = False) -> str:
    n_frames = sum(entry.frames for entry in facts.entries)
    names = ", ".join(map(str, facts.sources))
    return (
        f"{len(facts.dataset.clips):,} clips of talking people, {n_frames:,} frames, "
        f"{_format_minutes(n_frames)} minutes: crops of faces with mask boxes, mels and the matrices back to "
        "the source, made by redub to train speech-driven video editing. "
        f"Sources: {escape_markdown(names) if escape else make_printable(names)}."
    )


def _count_splits(facts: DatasetFacts) -> Iterator[tuple[str, ...]]:
    table = facts.dataset.clips.table
    pairs = set(zip(table["split"].to_pylist(), table["speaker"].to_pylist(), strict=True))
    speakers = Counter(split for split, _ in pairs)
    for split in _list_splits(facts):
        entries = [entry for entry in facts.entries if entry.split == split]
        n_clips, n_frames = sum(entry.clips for entry in entries), sum(entry.frames for entry in entries)
        counts = (n_clips, n_frames, speakers[split], len(entries))
        yield (split, *(f"{count:,}" for count in counts), _format_minutes(n_frames))


def _list_splits(facts: DatasetFacts) -> list[str]:
    return sorted({entry.split for entry in facts.entries})


def _format_minutes(n_frames: int) -> str:
    return f"{n_frames / VIDEO_FPS / 60:,.1f}"


def _describe_losses(facts: DatasetFacts) -> Iterator[str]:
    if facts.has_spans:
        yield from _describe_seconds(facts)
        return
    counts = dict(facts.counts)
    n_ok = counts.pop(OK)
    yield (
        f"Of {len(facts.ledger):,} source files {n_ok:,} became clips. `{LEDGER_NAME}` has a row for each "
        "file, with its reason if it did not."
    )
    if counts:
        rows = [
            (code, f"{count:,}", facts.reasons.get(code, ""))
            for code, count in list(counts.items())[:MAX_CODES]
        ]
        yield _format_table(("code", "files", "the first one's reason"), rows, escape=True)
    if len(counts) > MAX_CODES:
        yield f"... and {len(counts) - MAX_CODES} more codes."


def _describe_seconds(facts: DatasetFacts) -> Iterator[str]:
    """What became of every second of files that were cut into clips."""
    sums, unknown = sum_seconds(facts.ledger), count_by_code(list_unknown(facts.ledger))
    total, n_unknown = sum(sums.values()), sum(unknown.values())
    yield (
        f"{facts.counts[OK]:,} clips were cut out of {count_files(facts.ledger) - n_unknown:,} source files, "
        f"which last {_format_time(total)}. `{LEDGER_NAME}` has a row for each span of each file, "
        "with its times, what was measured, and its reason if it is no clip."
    )
    rows = [
        (
            "a clip" if code == OK else code,
            f"{facts.counts.get(code, 0):,}",
            _format_time(seconds),
            f"{seconds / total:.1%}" if total else "",
            "" if code == OK else facts.reasons.get(code, ""),
        )
        for code, seconds in list(sums.items())[: MAX_CODES + 1]
    ]
    header = ("what became of them", "spans", "h:mm:ss", "share", "the first one's reason")
    yield _format_table(header, rows, escape=True)
    if len(sums) > MAX_CODES + 1:
        yield f"... and {len(sums) - MAX_CODES - 1} more codes."
    if n_unknown:
        codes = [f"{escape_markdown(code)} ({count:,})" for code, count in unknown.items() if count]
        yield f"Not counted are files whose length could not be measured: {', '.join(codes[:MAX_CODES])}."


def _format_time(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"


def _format_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, escape: bool = False) -> str:
    lines = [header, ["---"] * len(header)]
    lines += [[escape_markdown(cell) if escape else cell for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_example(facts: DatasetFacts) -> str:
    splits, size = _list_splits(facts), facts.dataset.manifest["size"]
    raw = f"np.frombuffer(blob[start:end], np.uint8).reshape({size}, {size}, 3)"
    decode = raw if facts.codec == "raw" else "np.array(Image.open(io.BytesIO(blob[start:end])))"
    return f"""```python
import io
import numpy as np
from datasets import load_dataset
from PIL import Image

rows = load_dataset("FOLDER", split="{"train" if "train" in splits else splits[0]}")  # or USER/NAME of a hub
row = rows[0]
boxes = np.array(row["{BOXES_MEMBER}"], np.int16)  # (T, 4)
mels = np.array(row["{MELS_MEMBER}"], np.float32)  # (2T, M)
blob, (start, end) = row["{get_frames_member(facts.codec)}"], row["{JSON_MEMBER}"]["frame_offsets"][:2]
first_frame = {decode}  # (H, W, 3) uint8, RGB
```"""


def _check_replaceable(path: Path) -> None:
    """Raise ShardError for a file that was written by someone else."""
    try:
        # The line after the front matter of a README, or the end of a description: not any mention.
        content = read_file(path, MAX_BYTES, inside=path.parent)
        is_ours = any(sign.encode() in content for sign in (f"\n<!-- {MARK} of redub", f' {MARK} of redub."'))
    except FileNotFoundError:
        return
    except OSError as err:
        raise ShardError(f"{path}: cannot be read ({err.strerror})") from err
    if not is_ours:
        raise ShardError(f"{path}: is there already and was not {MARK.lower()}; rename or remove it")
