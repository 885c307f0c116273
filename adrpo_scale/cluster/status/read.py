"""Run folder → RunFacts. The module only reads, and tolerates the folder of a living run:
incomplete last lines, files that vanish, and edited records.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.status.base import (
    Evaluation,
    Holder,
    Row,
    RunFacts,
    Saved,
)
from adrpo_scale.core import folder_lock as run_lock
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.json_files import number_in, number_of, read_object, section_of
from adrpo_scale.core.run_rows import EVALUATIONS, METRICS, evaluation_rows, metric_rows
from adrpo_scale.run import tables
from adrpo_scale.run.cut_prompts import cut_text
from adrpo_scale.run.past_starts import past_starts
from adrpo_scale.training.guidance import outside

_CHECKPOINT = re.compile(r"step-(\d{6,})")  # a committed one, as in checkpoint/shelf.py
_EXPIRY = 120.0  # seconds, where config.json does not state it


class TrialFolderError(RunFolderError):
    """The folder of a trial, which lies among the folders of runs and has no state to show."""


def read(run: Path) -> RunFacts:
    """Reads a run folder. Raises RunFolderError for any other folder."""
    config = read_object(run / "config.json") or {}
    if not config and not (run / "lives").is_dir() and not (run / run_lock.LOCK).exists():
        raise _no_run(run)
    metrics = run / METRICS
    lines = metric_rows(metrics)
    algorithm = str(section_of(config, "algorithm").get("name"))
    return RunFacts(
        run=str(run),
        now=time.time(),
        iterations=number_in(config.get("iterations"), int),
        evaluation_every=number_in(section_of(config, "evaluation").get("every"), int) or 0,
        rows=tuple(map(_row, lines)),
        evaluation=_evaluation(run / EVALUATIONS),
        starts=tuple(past_starts(run)),
        holder=holder_of(run, section_of(config, "checkpoint")),
        checkpoint=_checkpoint(run / "checkpoints"),
        last_line=_modified(metrics),
        cut=cut_text(run),
        tuning=tuple(outside(lines, algorithm)),
    )


def _no_run(run: Path) -> RunFolderError:
    if not run.is_dir():
        return RunFolderError(
            f"{run} is not there; name the folder of a run, e.g. runs/<config>-<hash>"
        )
    if (run / "trial.json").exists():
        return TrialFolderError(
            f"{run} is the folder of a trial, not of a run; its results are in {run / 'trial.json'}"
        )
    return RunFolderError(
        f"{run} is not the folder of a run: it has no config.json, no lives/ and no lock"
    )


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _row(line: dict[str, Any]) -> Row:
    seconds, between = (number_of(line, key) for key in ("seconds", "seconds_between"))
    return Row(line["iteration"], number_in(line.get("reward"), float), seconds, between)


def _evaluation(path: Path) -> Evaluation | None:
    """The evaluation of held-out prompts, or of training prompts where none are held out."""
    rows = [row for row in evaluation_rows(path) if row["metric"] == "reward"]
    splits = {row["split"] for row in rows}
    if not splits:
        return None
    split = "held_out" if "held_out" in splits else str(sorted(splits)[0])
    return Evaluation(
        split, tables.before(rows, split, "reward"), tables.after(rows, split, "reward")
    )


def holder_of(run: Path, checkpoint: Mapping[str, Any]) -> Holder | None:
    try:
        held = run_lock.holder_of(run)
    except OSError:
        return None
    if held is None:
        return None
    owner, silence, has_ended = held
    stated = number_in(checkpoint.get("lock_expiry_seconds"), float) or _EXPIRY
    expiry = max(stated, 3 * (owner.heartbeat_seconds or 0.0))  # as run_lock judges it
    return Holder(str(owner), owner.host, owner.job_id, max(0.0, silence), expiry, has_ended)


def _checkpoint(folder: Path) -> Saved | None:
    try:
        matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir()]
    except OSError:
        return None
    there = {int(match[1]): path for match, path in matches if match}
    for iteration in sorted(there, reverse=True):
        try:
            at = (there[iteration] / "manifest.json").stat().st_mtime
            size = sum(path.stat().st_size for path in there[iteration].iterdir())
        except OSError:
            continue  # removed in the meantime, or without a manifest
        return Saved(iteration, at, size)
    return None
