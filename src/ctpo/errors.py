"""The one exception for mistakes that the user can correct, and text that is safe to print."""

from __future__ import annotations

import unicodedata
from typing import Final

_LONGEST: Final = 1500
"""Characters of an error message. The middle of a longer one is left out."""
_UNPRINTABLE: Final = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that are written as escapes: control and format characters, surrogates, line separators."""
_HARMLESS: Final = "\n\t\u200c\u200d"
"""What stays of them: line feed, tab, and the two joiners, which some scripts and emoji need."""


class UserError(ValueError):
    """What was asked cannot be done as it was asked.

    The message is one line: what is wrong, its value, and how to correct it. The command line prints it and exits
    with code 2. Every other exception is a defect of the library and keeps its traceback.

    A message may quote what somebody else wrote, so `str` gives it as `one_line` does.
    """

    of_one_process = False
    """Whether a single process may have met the error alone, such as a full disk. Only the main process reports
    errors that all processes meet alike."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class Notice(UserWarning):
    """A sentence about the user's data or code that is no error. The command line prints it as one line."""


def printable(text: str) -> str:
    """Return the text as a terminal may show it: only line feeds and tabs stay of the characters that control one.

    The others are written as escapes, such as `\\x1b`. Those are control characters (which could move the cursor, set
    a title or start a command of the terminal), format characters (which could turn the direction of the line), and
    unpaired surrogates (which no encoding has).
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if _is_plain(each) else _escape(each) for each in text)


def well_formed(text: str) -> str:
    """Return the text with U+FFFD in place of every unpaired surrogate.

    JSON can write half of a surrogate pair, such as `"\\ud83d"` where an emoji was cut. No encoding has it, and
    tokenizers and servers refuse it.
    """
    if text.isascii():
        return text
    return "".join("\ufffd" if "\ud800" <= each <= "\udfff" else each for each in text)


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return the text as `printable` does, as one line. The middle is left out if it has more than `longest`."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-(longest // 3) :]}"
    return " ".join(printable(text).split("\n")).replace("\t", " ")


def _is_plain(character: str) -> bool:
    return character in _HARMLESS or unicodedata.category(character) not in _UNPRINTABLE


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
