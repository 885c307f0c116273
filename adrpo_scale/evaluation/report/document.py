"""A text of headings, sentences, lists and tables, in Markdown and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from adrpo_scale.core.markdown import inline
from adrpo_scale.core.markdown import table as markdown_table
from adrpo_scale.evaluation.report.latex import escaped

PACKAGES = r"% \usepackage{array,booktabs,longtable}"
_BREAKS = re.compile(r"(?<=[a-z0-9])\.(?=[a-z])|(?<=\w)/(?=\w)|\\_(?=\w)")
_BETWEEN, _NARROWEST = 0.035, 0.05  # of a line: the space between columns, and a column's width
_MOST = 60  # characters that a column's width follows


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Items:
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """A table; the first line is its header."""

    lines: tuple[tuple[str, ...], ...]
    caption: str


Block = Heading | Paragraph | Items | Grid


def markdown(blocks: Sequence[Block]) -> str:
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {inline(block.text)}"
    if isinstance(block, Paragraph):
        return inline(block.text)
    if isinstance(block, Items):
        return "\n".join(f"* {inline(line)}" for line in block.lines)
    return f"{inline(block.caption)}\n\n" + markdown_table(
        [[inline(cell) for cell in line] for line in block.lines]
    )


def latex(blocks: Sequence[Block]) -> str:
    """For `\\input` into a document; its first line names the packages that it needs."""
    return "\n\n".join([PACKAGES, *map(_latex, blocks)]) + "\n"


def _latex(block: Block) -> str:
    if isinstance(block, Heading):
        command = {1: "section*", 2: "subsection*"}.get(block.level, "paragraph*")
        return rf"\{command}{{{escaped(block.text)}}}"
    if isinstance(block, Paragraph):
        return escaped(block.text)
    if isinstance(block, Items):
        lines = [rf"\item {escaped(line)}" for line in block.lines]
        return "\n".join([r"\begin{itemize}", *lines, r"\end{itemize}"])
    return _longtable(block)


def _longtable(grid: Grid) -> str:
    """A table over several pages, whose columns break their lines."""
    lengths = [max(map(len, column)) for column in zip(*grid.lines, strict=True)]
    shares = [min(max(length, 1), _MOST) for length in lengths]
    room = 1 - (_BETWEEN + _NARROWEST) * len(shares)
    widths = [_NARROWEST + room * share / sum(shares) for share in shares]
    shape = "".join(rf">{{\raggedright\arraybackslash}}p{{{w:.3f}\linewidth}}" for w in widths)
    head, *rows = (" & ".join(map(_cell, line)) + r" \\" for line in grid.lines)
    return "\n".join(
        [
            rf"\begin{{longtable}}{{{shape}}}",
            rf"\caption{{{escaped(grid.caption)}}} \\",
            r"\toprule",
            head,
            r"\midrule",
            r"\endhead",
            r"\bottomrule",
            r"\endfoot",
            *rows,
            r"\end{longtable}",
        ]
    )


def _cell(text: str) -> str:
    """Keys and paths break behind their dots, slashes and `_`."""
    return _BREAKS.sub(lambda found: found[0] + r"\allowbreak{}", escaped(text))
