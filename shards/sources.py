"""Where the clips of a dataset are from, and their licences: what is said of them in ``dataset.json``, and in
``run.json`` and published files of the networks that were trained on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from shards.documents import Document, Line
from shards.errors import MAX_LETTERS, ShardError, make_printable

NOT_STATED = "not stated"
MAX_SOURCES = 100


@dataclass(frozen=True, slots=True)
class KnownLicence:
    """A licence as other programs name it."""

    url: str
    hub_id: str  # of Hugging Face


KNOWN_LICENCES: Mapping[str, KnownLicence] = {
    "CC BY 4.0": KnownLicence("https://creativecommons.org/licenses/by/4.0/", "cc-by-4.0"),
    "CC BY 3.0": KnownLicence("https://creativecommons.org/licenses/by/3.0/", "cc-by-3.0"),
    "CC BY-SA 4.0": KnownLicence("https://creativecommons.org/licenses/by-sa/4.0/", "cc-by-sa-4.0"),
    "CC BY-NC 4.0": KnownLicence("https://creativecommons.org/licenses/by-nc/4.0/", "cc-by-nc-4.0"),
    "CC0 1.0": KnownLicence("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
    "ODbL 1.0": KnownLicence("https://opendatacommons.org/licenses/odbl/1-0/", "odbl"),
}


class DataSource(Document):
    """A corpus, and the licence of its clips."""

    name: Line
    licence: Line  # NOT_STATED where nobody said
    citation: Line | None = None  # authors, licence and address

    def __str__(self) -> str:
        return f"{self.name} ({self.licence})"


DataSources = Annotated[list[DataSource], Field(max_length=MAX_SOURCES)]


def read_sources(manifest: Mapping[str, Any]) -> list[DataSource]:
    """The sources of a dataset. One of an older redub has a name only, and its licence is not stated."""
    sources = [DataSource.model_validate(item) for item in manifest.get("sources", [])]
    return sources or [make_unknown_source(str(manifest.get("dataset") or "a dataset"))]


def make_unknown_source(name: str) -> DataSource:
    """The source of clips that nobody stated a licence of."""
    return DataSource(name=make_printable(name[:MAX_LETTERS]).strip() or "a dataset", licence=NOT_STATED)


def merge_sources(*lists: Iterable[DataSource]) -> list[DataSource]:
    """All sources of several lists, each once, in their order. Raises ShardError when they are too many."""
    sources: list[DataSource] = []
    for source in itertools.chain(*lists):
        if source not in sources:
            sources.append(source)
    if len(sources) > MAX_SOURCES:
        raise ShardError(f"{len(sources)} sources of clips, expected at most {MAX_SOURCES}")
    return sources
