"""Rows of `metrics.jsonl` and `eval.jsonl`, for every reader of them.

A line that is no such row is left out. Of several lines of one iteration or evaluated number the
last counts: a process that had lost the run folder may have written on beside its successor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adrpo_scale.core.json_files import read_lines, say_once

Row = dict[str, Any]
METRICS, EVALUATIONS = "metrics.jsonl", "eval.jsonl"
PROMPTS = "eval_prompts.jsonl"  # of each evaluation the numbers of every prompt
MEMORY = "out-of-memory.jsonl"  # a line for each time that memory ran out
_OF = ("run", "algorithm", "seed", "iteration", "split", "metric")  # what an evaluated number is of


def metric_rows(path: Path) -> list[Row]:
    """One row an iteration, in order. `iteration` is a whole number, anything else may be there."""
    return _unique(path, lambda row: _is_whole(row.get("iteration")), lambda row: row["iteration"])


def evaluation_rows(path: Path) -> list[Row]:
    """One row an evaluated number, by iteration. A row has `iteration`, `split`, `metric` and
    `value`, which is a finite number or None."""
    return _unique(path, _is_evaluation, lambda row: str([row.get(name) for name in _OF]))


def prompt_rows(path: Path) -> list[Row]:
    """One row a split and evaluation, by iteration: `iteration`, `split`, `weights`, `prompts` [P]
    (texts), and `metrics`, by name a `mean` [P], `n` [P], and `std` [P] where there is one; of
    numbers and None. [] in a folder of before."""
    return _unique(path, _has_prompts, lambda row: str([row["iteration"], row["split"]]))


def _has_prompts(row: Mapping[str, Any]) -> bool:
    prompts, metrics = row.get("prompts"), row.get("metrics")
    return (
        _is_whole(row.get("iteration"))
        and isinstance(row.get("split"), str)
        and row.get("weights") in ("raw", "ema")
        and isinstance(prompts, list)
        and all(isinstance(key, str) for key in prompts)
        and isinstance(metrics, dict)
        and all(_are_columns(columns, len(prompts)) for columns in metrics.values())
    )


def _are_columns(columns: Any, length: int) -> bool:
    """Whether `mean` and `n`, and `std` where it is there, are lists of so many numbers."""
    if not isinstance(columns, dict):
        return False
    lists = [columns.get("mean"), columns.get("n"), columns.get("std", columns.get("mean"))]
    return all(
        isinstance(values, list) and len(values) == length and all(map(_is_number, values))
        for values in lists
    )


def _unique(
    path: Path, is_row: Callable[[Row], bool], key: Callable[[Row], Any]
) -> list[dict[str, Any]]:
    lines = read_lines(path)
    rows = [line for line in lines if is_row(line)]
    if len(rows) < len(lines):
        say_once(path, f"{len(lines) - len(rows)} lines that are no rows of it are left out")
    return sorted(_last(rows, key), key=lambda row: int(row["iteration"]))


def _last(rows: Iterable[Row], key: Callable[[Row], Any]) -> Iterable[Row]:
    return {key(row): row for row in rows}.values()


def _is_evaluation(row: Mapping[str, Any]) -> bool:
    names = (row.get("split"), row.get("metric"))
    return (
        _is_whole(row.get("iteration"))
        and all(isinstance(name, str) and _is_writable(name) for name in names)
        and _is_number(row.get("value", ""))
    )


def _is_whole(value: Any) -> bool:
    return type(value) is int


def _is_writable(name: str) -> bool:
    """False for half a surrogate pair, which no terminal and no file takes."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _is_number(value: Any) -> bool:
    return value is None or type(value) in (int, float)
