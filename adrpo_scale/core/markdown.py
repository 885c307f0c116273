"""Names and texts of others in Markdown: model cards, tables, pages.

`inline` and `code` make one line that shows its text and is nothing else: no link, no picture, no
HTML, no further cell or line. `table` keeps every cell a cell, whatever stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adrpo_scale.core.printable import one_line

_MARKS = re.compile(r"[\\`*\[\]<>|&~]|(?<!\w)_|_(?!\w)")  # `_` inside a word is none
_BAR = re.compile(r"(?<!\\)\|")


def inline(text: str) -> str:
    """A text inside a line."""
    return _MARKS.sub(r"\\\g<0>", one_line(text))


def code(text: str) -> str:
    """A text as code inside a line, between more backticks than it has in a row."""
    text = one_line(text)
    longest = max(map(len, re.findall("`+", text)), default=0)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    marks = "`" * (longest + 1)
    return f"{marks}{space}{text}{space}{marks}"


def table(lines: Sequence[Sequence[str]]) -> str:
    """A table; the first line is its header."""
    rule = ["---"] * len(lines[0])
    cells = [[_BAR.sub(r"\\|", one_line(cell)) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], rule, *cells[1:]])
