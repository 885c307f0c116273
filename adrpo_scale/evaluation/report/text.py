"""The text of `report`: the table, the errors of each number, and what stands under every table.

Everything follows from the run folders alone; the same folders give the same text to the byte.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.markdown import table
from adrpo_scale.core.printable import one_line
from adrpo_scale.data.prompt_sets import set_hash
from adrpo_scale.evaluation.report.cells import Cell, Column, Difference, difference
from adrpo_scale.evaluation.report.comparison import (
    Line,
    columns,
    comparison,
    digits,
    ranking,
    scale,
    table_lines,
)
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.statistics import LEVEL, Interval
from adrpo_scale.run.prompt_sets import FILE

_PERCENT = f"{100 * LEVEL:.0f} %"
HEADER = (
    "metric",
    "row",
    "mean",
    "s.e. over training seeds (n)",
    "s.e. of sampling",
    f"{_PERCENT} over prompts (P)",
    "minus the next lower row",
)
LEGEND = (
    "±: standard error over training seeds. **Best** and *second best* are marked where every "
    f"paired {_PERCENT} interval of the difference to the next excludes 0.",
    "A difference is paired: over the seeds that both rows have (t interval), and over the prompts "
    "(bootstrap); p: exact test of the questions that one of the two alone gets right. The last "
    "column has no factors: a reward need not have a zero.",
)
TRACE = (
    *("row", "split", "metric", "row mean", "row training-seed s.e.", "row sampling s.e."),
    *("run", "folder", "seed", "iterations", "weights", "value", "prompts", "prompt set"),
)


def report_text(runs: Sequence[Evaluated]) -> str:
    """The table, the table of errors, and the notes."""
    lines, shown = table_lines(runs), columns([run for run in runs if run.rows])
    parts = [table(comparison(runs))]
    if lines and shown:
        parts += [table(errors(lines, shown)), "\n".join(LEGEND)]
        parts.append("\n".join(f"* {one_line(note)}" for note in notes(lines, shown)))
    return "\n\n".join(parts)


# --- errors ---------------------------------------------------------------------------------------


def errors(lines: Sequence[Line], shown: Sequence[Column]) -> list[list[str]]:
    """The lines of the second table: HEADER, then each metric's rows in the order of the first."""
    found = [[*HEADER]]
    for column in shown:
        order = ranking(lines, column)
        for place, line in enumerate(lines):
            cell = line.cells.get(column)
            if cell is None:
                continue
            rank = order.index(place)
            lower = lines[order[rank + 1]] if rank + 1 < len(order) else None
            found.append(_row(column, line, cell, lower))
    return found


def _row(column: Column, line: Line, cell: Cell, lower: Line | None) -> list[str]:
    factor, error, n = scale(column), cell.seed_error, len(cell.numbers)
    if not cell.is_trained:
        seeds = "nobody trained it"
    else:
        seeds = f"– ({n})" if error is None else f"{_plain(factor * error)} ({n})"
    sampling, over, keys = cell.sampling_error, cell.prompt_interval, cell.keys
    smallest = min((factor * e for e in (error, sampling) if e), default=None)
    gap = "–"
    if lower is not None:
        gap = f"{_gap(difference(cell, lower.cells[column]), factor)} to {lower.label}"
    return [
        f"{column[1]} ({column[0]})",
        line.label,
        f"{factor * cell.mean:.{digits(factor * cell.mean, smallest)}f}",
        seeds,
        "–" if sampling is None else _plain(factor * sampling),
        "–" if over is None else f"{_interval(over, factor)} ({len(keys or ())})",
        gap,
    ]


def _gap(found: Difference, factor: float) -> str:
    parts = []
    if found.seeds is not None:
        parts.append(f"{_interval(found.seeds, factor)} over {found.seed_count} seeds")
    if found.prompts is not None:
        p = "" if found.p is None else f", p = {found.p:.2g}"
        parts.append(f"{_interval(found.prompts, factor)} over prompts{p}")
    value = _plain(factor * found.value)
    return f"{value} ({'; '.join(parts) or 'nothing to pair'})"


def _interval(found: Interval, factor: float) -> str:
    return f"[{_plain(factor * found.low)}, {_plain(factor * found.high)}]"


def _plain(value: float) -> str:
    return f"{value:.{digits(value)}f}"


# --- notes ----------------------------------------------------------------------------------------


def notes(lines: Sequence[Line], shown: Sequence[Column]) -> list[str]:
    """What stands under the table: seeds that are missing or repeated, prompts, their overlap with
    those trained on, and where each row comes from."""
    return [*_seeds(lines), *_prompts(lines, shown), *_overlaps(lines), *_origins(lines)]


def _seeds(lines: Sequence[Line]) -> list[str]:
    found = []
    trained = [line for line in lines if line.is_trained]
    every = dict.fromkeys(run.seed_text for line in trained for run in line.runs)
    for line in trained:
        own = [run.seed_text for run in line.runs]
        missing = [seed for seed in every if seed not in own]
        if missing:
            has, lacks = ", ".join(own), ", ".join(missing)
            found.append(f"unequal seeds: {line.label} has {has} and lacks {lacks}")
        for run in line.repeated:
            found.append(
                f"seed {run.seed} of {line.label} is there twice: {run.folder.name} is left out"
            )
    return found


def _prompts(lines: Sequence[Line], shown: Sequence[Column]) -> list[str]:
    found = []
    for split in dict.fromkeys(split for split, _ in shown):
        sets: dict[tuple[str, ...], list[str]] = {}
        unknown: list[str] = []
        for line in lines:
            cells = [cell for column, cell in line.cells.items() if column[0] == split]
            for keys in {number.keys for cell in cells for number in cell.numbers}:
                (unknown if keys is None else sets.setdefault(keys, [])).append(line.label)
        texts = [
            f"{len(keys)} prompts, set {set_hash(keys)}"
            + (f" ({', '.join(labels)})" if len(sets) > 1 else "")
            for keys, labels in sets.items()
        ]
        if len(sets) > 1:
            texts.append("rows of different prompts are not compared prompt by prompt")
        if unknown:
            texts.append(f"not recorded for {', '.join(dict.fromkeys(unknown))}")
        found.append(f"prompts of {split}: {'; '.join(texts)}")
    return found


def _overlaps(lines: Sequence[Line]) -> list[str]:
    """Held-out prompts that were trained on, as `train` has measured."""
    said: dict[str, list[str]] = {}
    for run in _runs(lines):
        measured = (read_object(run.folder / FILE) or {}).get("overlap")
        if isinstance(measured, dict) and measured.get("tested"):
            text = "{shared} of {tested} held-out prompts are among the {trained} trained on"
            said.setdefault(text.format_map(_Known(measured)), []).append(run.folder.name)
    return [f"{text} ({', '.join(names)})" for text, names in said.items()]


class _Known(dict):  # type: ignore[type-arg]
    def __missing__(self, key: str) -> str:
        return "?"


def _runs(lines: Sequence[Line]) -> Iterable[Evaluated]:
    return {run.folder: run for line in lines for run in line.runs}.values()


def _origins(lines: Sequence[Line]) -> list[str]:
    found = []
    for line in lines:
        numbers = next(iter(line.cells.values())).numbers if line.cells else ()
        runs = [f"{number.run.folder.name} ({_of(number.run)})" for number in numbers]
        at = list(dict.fromkeys(iteration for n in numbers for iteration in n.iterations))
        weights = " and ".join(dict.fromkeys(number.run.weights for number in numbers))
        iterations = ", ".join(map(str, sorted(at)))
        found.append(f"{line.label}: {', '.join(runs)}; iterations {iterations}; {weights} weights")
    return found


def _of(run: Evaluated) -> str:
    return f"seed {run.seed}" if run.seed is not None else str(run.settings.get("run"))


def trace(runs: Sequence[Evaluated]) -> str:
    """CSV: for each cell of the table one line a run, with the iterations and weights behind it."""
    lines, shown = table_lines(runs), columns([run for run in runs if run.rows])
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(TRACE)
    for line in lines:
        for column in shown:
            if column not in line.cells:
                continue
            cell = line.cells[column]
            for number in cell.numbers:
                keys = number.keys
                out.writerow(
                    [
                        *(line.label, *column, cell.mean, cell.seed_error, cell.sampling_error),
                        *(number.run.folder.name, number.run.path, number.run.seed),
                        " ".join(map(str, number.iterations)),
                        *(number.run.weights, number.value),
                        "" if keys is None else len(keys),
                        "" if keys is None else set_hash(keys),
                    ]
                )
    return text.getvalue()
