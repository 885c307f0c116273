"""Tables from the rows of `eval.jsonl`, and from nothing else.

A row is {run, algorithm, seed, iteration, split, metric, value, n}.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.run_rows import EVALUATIONS, evaluation_rows

Row = Mapping[str, Any]
LAST = 3  # evaluations averaged for "after", because a single one is noisy

COLUMNS = (
    ("train", "reward"),
    ("held_out", "reward"),
    ("train", "checker"),
    ("held_out", "checker"),
    ("train", "clip_diversity_l2"),
    ("train", "clip_diversity_cosine"),
    ("train", "pixel_diversity"),
    ("train", "w2_sum"),
    ("train", "accuracy_greedy"),
    ("held_out", "accuracy_greedy"),
    ("held_out", "accuracy_sampled"),
    ("held_out", "gold_sampled"),
    ("held_out", "kl"),
    ("held_out", "entropy"),
)


def read_rows(run: Path) -> list[Row]:
    """Rows of a run folder's `eval.jsonl`. RunFolderError where there is none."""
    path = run / EVALUATIONS
    if not path.is_file():
        raise RunFolderError(
            f"{path} is not there: give the folder of a run with evaluation.every > 0 that has "
            "reached its first evaluation"
        )
    return list[Row](evaluation_rows(path))


def before(rows: Iterable[Row], split: str, metric: str) -> float | None:
    """The value at iteration 0, or None."""
    values = [r["value"] for r in rows if _is(r, split, metric) and r["iteration"] == 0]
    return values[0] if values else None


def after(rows: Iterable[Row], split: str, metric: str) -> float | None:
    """Mean of the last three evaluations after iteration 0, or None."""
    found = sorted(
        (r["iteration"], r["value"])
        for r in rows
        if _is(r, split, metric) and r["iteration"] > 0 and r["value"] is not None
    )
    return statistics.fmean(value for _, value in found[-LAST:]) if found else None


def _is(row: Row, split: str, metric: str) -> bool:
    return row["split"] == split and row["metric"] == metric and row["value"] is not None


def before_after(rows: Sequence[Row]) -> list[tuple[str, str, float | None, float | None]]:
    """(split, metric, before, after) of every metric in the rows, in a fixed order."""
    known = {(r["split"], r["metric"]) for r in rows}
    metrics = metric_order({metric for _, metric in known})
    ordered = [(s, m) for m in metrics for s in ("train", "held_out") if (s, m) in known]
    return [(s, m, before(rows, s, m), after(rows, s, m)) for s, m in ordered]


def metric_order(names: set[str]) -> list[str]:
    """Known metrics first, in the order of COLUMNS, then the others by name."""
    first = [m for m in dict.fromkeys(metric for _, metric in COLUMNS) if m in names]
    return first + sorted(names - set(first))
