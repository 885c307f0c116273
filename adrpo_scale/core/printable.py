"""Text of others on a terminal: prompts, completions, names, answers, records, error messages.

A terminal obeys escape sequences in what it prints: one can hide lines, write over those above,
rename the window, or answer a question with text that the shell then reads. So control characters
are shown as Python writes them (`\\x1b`), wherever text leaves for a terminal, a pipe or a log:
`core.console` and `core.screen` do it for all that is printed, `Formatter` for what is logged.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from adrpo_scale.core.secrets import masked

# C0 but for tab, line end and the CR of CRLF; DEL; C1; halves of surrogate pairs; what reverses
# the direction of text, so that a line reads otherwise than it is.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
    "|\r(?!\n)"
)
_ENDS = re.compile("[\t\r\n]")
SHOWN = 200  # characters of a value in an error


def printable(text: str) -> str:
    """The text with its control characters shown and known secrets masked; tabs and line ends
    stay."""
    return _CONTROLS.sub(_shown, masked(text))


def one_line(text: str) -> str:
    """`printable` text whose tabs and line ends are shown as well: a name cannot pass for a line of
    its own."""
    return _ENDS.sub(_shown, printable(text))


def _shown(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


class Formatter(logging.Formatter):
    """Lines of a log, printable."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def shown(value: Any, *, quote: bool = True) -> str:
    """A value as an error shows it: one line, not endless."""
    try:
        text = repr(value) if quote else str(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text)} characters)"
