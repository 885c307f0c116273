"""Run folder → RunFacts. The module only reads, and tolerates the folder of a living run:
incomplete last lines, files that vanish, and edited records.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.status.base import (
    Evaluation,
    Found,
    Holder,
    PastStart,
    Row,
    RunFacts,
    Saved,
)
from adrpo_scale.core import folder_lock as run_lock
from adrpo_scale.core.errors import LOST, RunFolderError
from adrpo_scale.core.json_files import number_of, read_lines, read_object
from adrpo_scale.core.run_rows import EVALUATIONS, MEMORY, METRICS, evaluation_rows, metric_rows
from adrpo_scale.run import tables
from adrpo_scale.run.cut_prompts import cut_text
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
    algorithm = str(_section(config, "algorithm").get("name"))
    return RunFacts(
        run=str(run),
        now=time.time(),
        iterations=_number(config.get("iterations"), int),
        evaluation_every=_number(_section(config, "evaluation").get("every"), int) or 0,
        rows=tuple(map(_row, lines)),
        evaluation=_evaluation(run / EVALUATIONS),
        starts=tuple(_starts(run)),
        holder=_holder(run, _section(config, "checkpoint")),
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


def _section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _number(value: Any, number: type) -> Any:
    """`value` as int or float; None unless it is a number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if is_number else None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _row(line: dict[str, Any]) -> Row:
    seconds, between = (number_of(line, key) for key in ("seconds", "seconds_between"))
    return Row(line["iteration"], _number(line.get("reward"), float), seconds, between)


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


def _starts(run: Path) -> Iterator[PastStart]:
    found = (run / "lives").glob("*.json")
    try:
        paths = sorted((p for p in found if p.stem.isdecimal()), key=_start_number)
    except OSError:
        return
    short = {line.get("start"): line for line in reversed(read_lines(run / MEMORY))}
    for path in paths:
        record = read_object(path) or {}
        if record.get("exit_code") == LOST and _start_number(path) in short:
            record |= _out_of_memory(short[_start_number(path)])
        began = _time(record.get("began"))
        if began is not None:
            yield _start(_start_number(path), began, record)


def _out_of_memory(line: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a start as the rank that ran out of memory tells it. The record is rank 0's, which
    has lost another process."""
    where = ", ".join(f"{name} {line.get(name)}" for name in ("iteration", "rank"))
    outcome = f"ran out of memory in {line.get('phase')} ({where} on {line.get('host')})"
    return {"outcome": outcome, "exit_code": line.get("exit_code")}


def _start_number(path: Path) -> int:
    return int(path.stem)


def _start(number: int, began: float, record: Mapping[str, Any]) -> PastStart:
    job, gpus = record.get("job_id"), _section(record, "gpus")
    outcome = record.get("outcome")
    return PastStart(
        number=number,
        began=began,
        world=_number(record.get("world_size"), int) or 1,
        gpus=sum(_number(count, int) or 0 for count in gpus.values()),
        job=str(job) if job else None,
        resumed_from=_number(record.get("resumed_from"), int),
        found=_found(record.get("found")),
        ended=_time(record.get("ended")),
        outcome=str(outcome) if outcome is not None else None,
        exit_code=_number(record.get("exit_code"), int),
        iteration=_number(record.get("iteration"), int),
    )


def _found(record: Any) -> Found | None:
    if not isinstance(record, dict):
        return None
    return Found(
        _number(record.get("iterations"), int) or 0,
        _number(record.get("seconds"), float) or 0.0,
        _time(record.get("last_line")),
    )


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _holder(run: Path, checkpoint: Mapping[str, Any]) -> Holder | None:
    try:
        held = run_lock.holder_of(run)
    except OSError:
        return None
    if held is None:
        return None
    owner, silence, has_ended = held
    stated = _number(checkpoint.get("lock_expiry_seconds"), float) or _EXPIRY
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
