"""The choice of checkpoints to keep. Pure functions of the files, so a restart changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.core.run_rows import evaluation_rows

log = logging.getLogger(__name__)


def kept(
    iterations: Sequence[int], values: Mapping[int, float], config: CheckpointConfig
) -> set[int]:
    """Iterations whose checkpoints stay: the last N, every M-th, and the best k of those that
    have a value."""
    newest = sorted(iterations, reverse=True)
    stay = set(newest[: config.keep_last])
    if config.keep_every:
        stay |= {i for i in iterations if i % config.keep_every == 0}
    measured = [i for i in newest if i in values]
    sign = -1.0 if config.best_mode == "max" else 1.0
    stay |= set(sorted(measured, key=lambda i: sign * values[i])[: config.keep_best])
    return stay


def values_of(rows: Iterable[Mapping[str, Any]], metric: str, split: str) -> dict[int, float]:
    """Iteration → value of one metric on one split, from rows of `eval.jsonl`."""
    return {
        row["iteration"]: float(row["value"])
        for row in rows
        if (row["metric"], row["split"]) == (metric, split) and row["value"] is not None
    }


def read_values(path: Path, config: CheckpointConfig) -> dict[int, float]:
    """The values by which `keep_best` ranks; {} where it is 0 or nothing was measured."""
    if not config.keep_best:
        return {}
    rows = evaluation_rows(path)
    found = values_of(rows, config.best_metric, config.best_split)
    if rows and not found:
        known = sorted({row["metric"] for row in rows})
        log.warning(
            "checkpoint.best_metric = %r is not measured on %s, so no checkpoint is kept as best; "
            "measured: %s",
            config.best_metric,
            config.best_split,
            ", ".join(known),
        )
    return found
