"""Names that become a part of a path or of a tar's key: ids of clips, splits, and files of a dataset."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from shards.errors import ShardError, shorten

# Two ids joined by "~" are the stem of a file of generated frames, and a file name has at most 255 bytes. A
# plain tar header has room for 100 bytes.
MAX_ID_BYTES = 100
MAX_NAME_BYTES = 255

# RE2, which Arrow applies to a whole column: \pC are control characters and code points without a meaning,
# \pZ spaces. A name neither begins nor ends with a space. "~" joins two ids.
_FORBIDDEN = r"/\\~\pC\p{Zl}\p{Zp}"
ID_PATTERN = rf"\A[^{_FORBIDDEN}.\pZ]([^{_FORBIDDEN}.]*[^{_FORBIDDEN}.\pZ])?\z"
FILE_PATTERN = rf"\A[^{_FORBIDDEN}.\pZ]([^{_FORBIDDEN}]*[^{_FORBIDDEN}.\pZ])?\z"
DEVICE_PATTERN = r"(?i)\A(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|\z)"  # files of Windows that are none
ID_RULE = f"1 to {MAX_ID_BYTES} bytes without . / \\ ~ and control characters"
FILE_RULE = "a plain file name"


def match_names(values: pa.Array, pattern: str, max_bytes: int) -> pa.Array:
    """Which strings are names of this pattern: booleans."""
    is_name = pc.match_substring_regex(values, pattern)
    is_device = pc.match_substring_regex(values, DEVICE_PATTERN)
    is_short = pc.less_equal(pc.binary_length(values), max_bytes)
    return pc.and_(pc.and_(is_name, is_short), pc.invert(is_device))


def is_id(value: object) -> bool:
    """Whether this can be the id of a clip or the name of a split."""
    return _is_name(value, ID_PATTERN, MAX_ID_BYTES)


def is_file_name(value: object) -> bool:
    """Whether this can be the name of a file in a dataset."""
    return _is_name(value, FILE_PATTERN, MAX_NAME_BYTES)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: a path whose bytes are something else cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_clip_id(clip_id: object, where: str = "") -> None:
    """Raise ShardError unless this can be a clip's id; ``where`` is the file that has it."""
    if not is_id(clip_id):
        raise ShardError(
            f"{where}{': ' if where else ''}clip id {shorten(clip_id)} is not a plain name: {ID_RULE}"
        )


def _is_name(value: object, pattern: str, max_bytes: int) -> bool:
    try:
        return bool(match_names(pa.array([value], pa.string()), pattern, max_bytes)[0].as_py())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        return False
