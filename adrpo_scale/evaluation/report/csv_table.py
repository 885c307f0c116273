"""The tables of a report as CSV: one line a cell, every number with all its digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from adrpo_scale.core.printable import one_line
from adrpo_scale.evaluation.report.comparison import columns, marks, scale, table_lines
from adrpo_scale.evaluation.report.evaluated import Evaluated

HEADER = (
    *("row", "trained here", "split", "metric", "mean", "runs"),
    *("training-seed s.e.", "sampling s.e.", "prompts low", "prompts high", "prompts", "mark"),
)


def table_csv(runs: Sequence[Evaluated]) -> str:
    """Of each cell its mean and errors, in the units of the Markdown table; "" where there is
    none. prompts low, high: the interval over prompts. mark: best, second, or ""."""
    lines, shown = table_lines(runs), columns([run for run in runs if run.rows])
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(HEADER)
    for column in shown:
        marked, factor = marks(lines, column), scale(column)
        for place, line in enumerate(lines):
            cell = line.cells.get(column)
            if cell is None:
                continue
            over, names = cell.prompt_interval, [one_line(name) for name in column]
            ends = (None, None) if over is None else (over.low, over.high)
            numbers = (cell.seed_error, cell.sampling_error, *ends)
            out.writerow(
                [
                    *(one_line(line.label), "yes" if cell.is_trained else "no", *names),
                    *(factor * cell.mean, len(cell.numbers)),
                    *("" if number is None else factor * number for number in numbers),
                    "" if over is None else len(cell.keys or ()),
                    marked.get(place, ""),
                ]
            )
    return text.getvalue()
