"""An evaluation as Markdown tables, in percent, beside the published figures of the config.

This package itself holds none of the paper's figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from adrpo_scale.core.markdown import inline, table
from adrpo_scale.evaluation.mmau.base import PAPER, TASKS, PublishedRow
from adrpo_scale.evaluation.mmau.judging import MEASURES, TOTAL, Tally

COLUMNS = (*TASKS, TOTAL)
LABELS = {
    "strict": "strict: the option inside `<answer>`",
    "strict_untagged": "strict, or of all the text without a tag",
    "benchmark": "the benchmark's own scorer",
    "unparsed": "unparsed: names no option",
    "untagged": "without `<answer>`",
    "cut_off": "cut off: reached the limit of its length",
    "unanswered": "unanswered",
}
ERROR = "its standard error over questions"
NOT_COMPARABLE = "published by others, not comparable"  # other prompts, decoding and revisions
NO_PAPER = (
    "The paper's table 2 (arXiv 2510.18053) is not shown, because its figures are not in this "
    "package. Add a [published] entry for each of its rows to the config to show them here."
)


def main_table(model: str, tallies: Sequence[Tally], published: Mapping[str, PublishedRow]) -> str:
    """Accuracy by task and measure, its standard error over questions, and counts; then a table of
    its own with what others published."""
    subsets = {tally.subset: tally for tally in tallies}
    lines = [[inline(model), *COLUMNS]]
    for metric, label in LABELS.items():
        cells = [subsets[column].metrics[metric] for column in COLUMNS]
        show = percent if metric in MEASURES else count
        lines.append([label, *(show(*cell) for cell in cells)])
        if metric == MEASURES[0]:
            lines.append([ERROR, *(question_error(*cell) for cell in cells)])
    return "\n\n".join([table(lines), *published_table(published)])


def published_table(published: Mapping[str, PublishedRow]) -> list[str]:
    """What others published, apart from what was measured here; [] without any."""
    if not published:
        return []
    lines = [[NOT_COMPARABLE, *COLUMNS]]
    for name, row in published.items():
        figures = [getattr(row, column) for column in COLUMNS]
        lines.append([inline(f"{row.source}: {name}"), *(f"{figure:.2f}" for figure in figures)])
    return [table(lines)]


def detail_table(tallies: Sequence[Tally]) -> str:
    """Accuracy by difficulty and sub-category."""
    lines = [["", "n", "strict", "strict, untagged too", "benchmark's scorer"]]
    for tally in tallies:
        if tally.subset not in COLUMNS:
            cells = [percent(*tally.metrics[metric]) for metric in MEASURES]
            n = tally.metrics[MEASURES[0]][1]
            subset = tally.subset.replace("_", " ").replace(":", ": ")
            lines.append([inline(subset), str(n), *cells])
    return table(lines)


def percent(value: float, n: int) -> str:
    return "–" if n == 0 or math.isnan(value) else f"{100 * value:.2f}"


def question_error(value: float, n: int) -> str:
    """The standard error of an accuracy over questions, in percent: 1.35 at 76 % of 1,000."""
    if n < 2 or math.isnan(value):
        return "–"
    return f"± {100 * math.sqrt(value * (1 - value) / (n - 1)):.2f}"


def count(value: float, n: int) -> str:
    return f"{int(value)} of {n}"


def page(
    title: str,
    notes: Sequence[str],
    model: str,
    tallies: Sequence[Tally],
    published: Mapping[str, PublishedRow],
) -> str:
    """The text of table.md."""
    parts = [f"# {inline(title)}", *notes, main_table(model, tallies, published)]
    parts += [] if any(row.source == PAPER for row in published.values()) else [NO_PAPER]
    return "\n\n".join([*parts, detail_table(tallies)]) + "\n"
