"""The tables of a report in LaTeX, for `\\input` into a document with `\\usepackage{booktabs}`.

Names and texts of others are escaped: none of them is a command, a comment, or an argument.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adrpo_scale.core.printable import one_line
from adrpo_scale.evaluation.report.comparison import columns, marked_cells, table_lines
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.text import LEGEND, errors, notes

_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{mark: f"\\{mark}" for mark in "{}$&#_%"},
    **{mark: f"{{{mark}}}" for mark in "[]*'"},  # after \\ an argument; in pairs a ligature
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "-": "-{}",  # before another: two are no dash
    "–": "--",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "$-$",
    "√": r"$\surd$",
    "Σ": r"$\Sigma$",
    "²": r"\textsuperscript{2}",
    "→": r"$\to$",
    "\u200b": "",
}
_SPECIAL = re.compile("|".join([*map(re.escape, {*_ESCAPES} - {"-"}), "-(?=-)"]))
_NEGATIVE = re.compile(r"(?<![\w.)-])-(?=\d)")  # a sign, no hyphen
_STARRED = re.compile(r"\*\*(.+?)\*\*|\*(.+?)\*")
_ERRORS = r"llrrrrp{.3\linewidth}"
_COMMANDS = {"best": r"\textbf", "second": r"\textit"}


def escaped(text: str) -> str:
    """A text as one line of LaTeX that shows it."""
    text = _NEGATIVE.sub("−", one_line(text))
    return _SPECIAL.sub(lambda match: _ESCAPES[match[0]], text)


def tabular(head: Sequence[str], rows: Sequence[Sequence[str]], shape: str | None = None) -> str:
    """A table of cells that are LaTeX already. shape: of its columns; the first is text."""
    lines = [" & ".join(cells) + r" \\" for cells in [head, *rows]]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{shape or 'l' + 'r' * (len(head) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def report_tex(runs: Sequence[Evaluated]) -> str:
    """What `report_text` says, in LaTeX: bold for the best, italic for the second."""
    lines, shown = table_lines(runs), columns([run for run in runs if run.rows])
    head = ["", *(escaped(f"{metric} ({split})") for split, metric in shown)]
    rows = [
        [escaped(line.label), *(_marked(text, mark) for text, mark in cells)]
        for line, cells in zip(lines, marked_cells(lines, shown), strict=True)
    ]
    parts = ["% \\usepackage{booktabs}", tabular(head, rows)]
    if lines and shown:
        below = [[escaped(cell) for cell in line] for line in errors(lines, shown)]
        parts += [
            "",
            r"\bigskip \footnotesize",
            tabular(below[0], below[1:], _ERRORS),
            "",
            r"\medskip",
        ]
        items = [rf"\item {escaped(note)}" for note in notes(lines, shown)]
        legend = " ".join(_legend(text) for text in LEGEND)
        parts += [rf"{{\footnotesize {legend}", r"\begin{itemize}", *items, r"\end{itemize}}"]
    return "\n".join(parts) + "\n"


def _marked(text: str, mark: str) -> str:
    return f"{_COMMANDS[mark]}{{{escaped(text)}}}" if mark else escaped(text)


def _legend(text: str) -> str:
    """A sentence of ours, with its Markdown marks as commands."""
    found, end = "", 0
    for match in _STARRED.finditer(text):
        command, inner = (r"\textbf", match[1]) if match[1] else (r"\textit", match[2])
        found += f"{escaped(text[end : match.start()])}{command}{{{escaped(inner)}}}"
        end = match.end()
    return found + escaped(text[end:])
