"""The records `lives/NN.json` of a run, read back: when each start began and ended, on what, and
what it repeated. Edited and damaged records are tolerated; nothing here imports torch.

Times are seconds since the epoch, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import LOST
from adrpo_scale.core.json_files import number_in, read_lines, read_object, section_of
from adrpo_scale.core.run_rows import MEMORY


@dataclass(frozen=True)
class Found:
    """Work of the previous start after its last checkpoint, which a start repeats. last_line: time
    of its last line in metrics.jsonl; None without any."""

    iterations: int
    seconds: float
    last_line: float | None


@dataclass(frozen=True)
class PastStart:
    """One record lives/NN.json. resumed_from: None for a start at iteration 0. ended, outcome,
    exit_code, iteration: None where no end was recorded; iteration: -1 where the start ended before
    it trained."""

    number: int
    began: float
    world: int
    gpus: int = 0
    job: str | None = None
    resumed_from: int | None = None
    found: Found | None = None
    ended: float | None = None
    outcome: str | None = None
    exit_code: int | None = None
    iteration: int | None = None


def past_starts(run: Path) -> Iterator[PastStart]:
    """The starts of a run, in order; those without a time are left out."""
    found = (run / "lives").glob("*.json")
    try:
        paths = sorted((p for p in found if p.stem.isdecimal()), key=_number)
    except OSError:
        return
    short = {line.get("start"): line for line in reversed(read_lines(run / MEMORY))}
    for path in paths:
        record = read_object(path) or {}
        if record.get("exit_code") == LOST and _number(path) in short:
            record |= _out_of_memory(short[_number(path)])
        began = _time(record.get("began"))
        if began is not None:
            yield _start(_number(path), began, record)


def end_of(start: PastStart, after: PastStart) -> float:
    """Time of the end of a start with a successor; for a killed one, of its last line."""
    if start.ended is not None:
        return start.ended
    last = after.found.last_line if after.found else None
    return min(max(start.began, last or start.began), after.began)


def _number(path: Path) -> int:
    return int(path.stem)


def _out_of_memory(line: Mapping[str, Any]) -> dict[str, Any]:
    """The end of a start as the rank that ran out of memory tells it. The record is rank 0's, which
    has lost another process."""
    where = ", ".join(f"{name} {line.get(name)}" for name in ("iteration", "rank"))
    outcome = f"ran out of memory in {line.get('phase')} ({where} on {line.get('host')})"
    return {"outcome": outcome, "exit_code": line.get("exit_code")}


def _start(number: int, began: float, record: Mapping[str, Any]) -> PastStart:
    job, gpus = record.get("job_id"), section_of(record, "gpus")
    outcome = record.get("outcome")
    return PastStart(
        number=number,
        began=began,
        world=number_in(record.get("world_size"), int) or 1,
        gpus=sum(number_in(count, int) or 0 for count in gpus.values()),
        job=str(job) if job else None,
        resumed_from=number_in(record.get("resumed_from"), int),
        found=_found(record.get("found")),
        ended=_time(record.get("ended")),
        outcome=str(outcome) if outcome is not None else None,
        exit_code=number_in(record.get("exit_code"), int),
        iteration=number_in(record.get("iteration"), int),
    )


def _found(record: Any) -> Found | None:
    if not isinstance(record, dict):
        return None
    return Found(
        number_in(record.get("iterations"), int) or 0,
        number_in(record.get("seconds"), float) or 0.0,
        _time(record.get("last_line")),
    )


def _time(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
