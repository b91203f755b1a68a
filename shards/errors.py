"""The error of this package, and messages that stay one line, whatever a stranger's file holds."""

from __future__ import annotations

import re
import reprlib

MAX_LETTERS = 80  # of a value in a message
MAX_MESSAGE_LETTERS = 300
ABSOLUTE_PATH = re.compile(r"(?<![:/\w])(/|[A-Za-z]:[\\/])\S+")  # and no web address


class ShardError(Exception):
    """A sample, shard or dataset does not follow the schema, or cannot be read. Its message is one line."""

    def __init__(self, message: str = "") -> None:
        super().__init__(shorten_message(message))


def shorten(value: object) -> str:
    """A value of a stranger's file for a message: its repr, at most MAX_LETTERS long."""
    # a part of a string, since its whole repr may take gigabytes; of a container, its first items
    if isinstance(value, (str, bytes)):
        text = repr(value[:MAX_LETTERS])
        return text if len(value) <= MAX_LETTERS and len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}..."
    text = _ShortRepr().repr(value)
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}..."


class _ShortRepr(reprlib.Repr):
    """Few items of a container, few letters of each."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxlist, self.maxtuple = 2, 4, 4, 4
        self.maxstring = self.maxother = self.maxlong = MAX_LETTERS // 2


def shorten_message(message: str) -> str:
    """A message as one line that a terminal can print, with its middle left out if it is too long."""
    is_long = len(message) > 4 * MAX_MESSAGE_LETTERS
    line = make_printable(
        f"{message[:MAX_MESSAGE_LETTERS]} {message[-MAX_MESSAGE_LETTERS:]}" if is_long else message
    )
    if len(line) <= MAX_MESSAGE_LETTERS:
        return line
    n_last = MAX_MESSAGE_LETTERS // 3
    return f"{line[: MAX_MESSAGE_LETTERS - n_last]} ... {line[-n_last:]}"


def make_printable(text: str) -> str:
    """A text as one line that a terminal can print: other letters as in Python's source."""
    return "".join(
        letter if letter.isprintable() else " " if letter in "\n\t" else ascii(letter)[1:-1]
        for letter in text
    )


def hide_paths(text: str) -> str:
    """A text that is made to be sent, without the folders of this machine."""
    return ABSOLUTE_PATH.sub("...", text)
