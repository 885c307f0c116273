"""The state of every element of a sweep, from the folders of its runs; nothing here imports torch.

    done        it has all its iterations        limit     a limit of [limits] ended it
    running     a process holds its folder       failed    an error that the user fixes
    starting    its job runs                     stopped   a signal ended it; a start goes on
    requeued    its job waits to go on           killed    it ended without a word
    to do       no start has begun

An element whose folder another sweep has trained with fewer iterations is to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from adrpo_scale.cluster.status import base, view
from adrpo_scale.cluster.status.base import RunFacts
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.errors import LOST, LimitReached, exit_code
from adrpo_scale.run.past_starts import PastStart
from adrpo_scale.run.sweep import Element, Sweep
from adrpo_scale.run.sweep_record import error_of, read_record, runs_folder

DONE, RUNNING, STARTING, REQUEUED = base.DONE, base.RUNNING, base.STARTING, "requeued"
LIMIT, FAILED, STOPPED, KILLED, TO_DO = "limit", base.FAILED, base.STOPPED, base.KILLED, "to do"
ORDER = (DONE, RUNNING, STARTING, REQUEUED, LIMIT, FAILED, STOPPED, KILLED, TO_DO)
TROUBLE = (LIMIT, FAILED, KILLED)
AGAIN = (FAILED, LIMIT)

_LIMIT_CODE = exit_code(LimitReached())
_REASON = 70  # characters of an error in one line
_STATES = {base.QUEUED: REQUEUED, base.NEW: TO_DO}


@dataclass(frozen=True)
class ElementState:
    """run: the folder; None before the sweep has begun. why: in a few words, for limit, failed and
    killed. lost: earlier starts that ended without a word or lost another process, in words; "".
    job: Slurm job that holds the folder. facts: of the folder; None without one."""

    element: Element
    run: Path | None
    state: str = TO_DO
    why: str = ""
    lost: str = ""
    job: str | None = None
    facts: RunFacts | None = None


def states_of(sweep: Sweep, ask_queue: bool = True) -> list[ElementState]:
    """Every element's state, in order. Raises ConfigError where the file has changed since the
    sweep began."""
    record = read_record(sweep)
    if record is None:
        return [ElementState(element, None) for element in sweep.elements]
    runs = [runs_folder() / one.run for one in record.elements]
    known = {run: found for run in runs if isinstance(found := view.facts_of(run), RunFacts)}
    if ask_queue:
        known = dict(zip(known, view.with_queue(list(known.values())), strict=True))
    triples = zip(sweep.elements, runs, record.elements, strict=True)
    return [
        _state(sweep, element, run, known.get(run), one.iterations) for element, run, one in triples
    ]


def _state(
    sweep: Sweep, element: Element, run: Path, facts: RunFacts | None, iterations: int
) -> ElementState:
    if facts is None:
        return _early(sweep, element, ElementState(element, run), None)
    status = judge(facts)
    last = facts.starts[-1] if facts.starts else None
    state, why = _STATES.get(status.state, status.state), ""
    if state == DONE and (facts.iterations or 0) < iterations:
        state = TO_DO
    if state == FAILED and last is not None and last.exit_code == _LIMIT_CODE:
        state, why = LIMIT, limit_text(last)
    elif state == FAILED and last is not None:
        why = _short(last.outcome)
    elif state == KILLED:
        why = _short(status.why)
    holder = facts.holder
    job = holder.job if holder is not None and state == RUNNING else None
    found = ElementState(element, run, state, why, _lost(facts), job, facts)
    return _early(sweep, element, found, last)


def _early(
    sweep: Sweep, element: Element, found: ElementState, last: PastStart | None
) -> ElementState:
    """`found`, or the failure of a later start that never came to its run folder."""
    if found.state in (DONE, RUNNING, STARTING):
        return found
    error = error_of(sweep, element)
    if error is None or (last is not None and last.began > error[0]):
        return found
    _, code, text = error
    if code == _LIMIT_CODE:
        return replace(found, state=LIMIT, why=found.why or _short(text))
    return replace(found, state=FAILED, why=_short(text))


def limit_text(start: PastStart) -> str:
    """`divergence, iteration 64`: the limit that ended a start, and where."""
    outcome = start.outcome or ""
    named = re.search(r"limits\.(?:max_|min_)?(\w+)", outcome)
    at = re.search(r"iteration (\d+)", outcome)
    number = at[1] if at else start.iteration if (start.iteration or 0) > 0 else None
    what = named[1].replace("_", " ").replace("lives", "starts") if named else _short(outcome)
    return what if number is None else f"{what}, iteration {number}"


def _short(text: str | None) -> str:
    line = (text or "no reason recorded").strip().partition("\n")[0]
    return line if len(line) <= _REASON else f"{line[:_REASON].rstrip()}…"


def _lost(facts: RunFacts) -> str:
    for start, _ in pairwise(facts.starts):
        if start.exit_code is None:
            return f"start {start.number} ended without a word"
        if start.exit_code == LOST:
            return f"start {start.number} lost another process"
    return ""


def is_ours(state: ElementState) -> bool:
    """Whether an element that is said to run is held by an earlier start of this Slurm job."""
    return state.job is not None and state.job == os.environ.get("SLURM_JOB_ID")


def to_do(states: Sequence[ElementState], again: Sequence[str] = ()) -> list[ElementState]:
    """The elements that a start goes on with: all but those that are over or held. again: states
    that count as not over."""
    over = {DONE, RUNNING, LIMIT, FAILED} - set(again)
    return [one for one in states if one.state not in over or is_ours(one)]
