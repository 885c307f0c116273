"""RunFacts → Status; pure functions."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean

from adrpo_scale.cluster.status.base import (
    DONE,
    FAILED,
    KILLED,
    NEW,
    QUEUED,
    RUNNING,
    STARTING,
    STOPPED,
    RunFacts,
    Status,
)
from adrpo_scale.core.errors import DONE_BUT, LOST
from adrpo_scale.core.errors import STOPPED as REQUEUE
from adrpo_scale.run.past_starts import PastStart, end_of

RECENT = 10  # iterations in the mean reward
ENOUGH = 3  # iterations that suffice for the speed of a start


def judge(facts: RunFacts) -> Status:
    """The status of a run."""
    state, why = _state(facts)
    saved, rate = facts.checkpoint, _seconds_per_iteration(facts)
    iteration = _iteration(facts)
    risk_iterations, risk_seconds = _at_risk(facts, state)
    lost_iterations, lost_seconds = _lost(facts, rate)
    rewards = [row.reward for row in facts.rows[-RECENT:] if row.reward is not None]
    left = None
    if rate is not None and facts.iterations is not None:
        left = rate * max(0, facts.iterations - iteration)
    return Status(
        run=facts.run,
        state=state,
        why=why,
        iteration=iteration,
        iterations=facts.iterations,
        reward=fmean(rewards) if rewards else None,
        evaluation=facts.evaluation,
        seconds_per_iteration=rate,
        seconds_left=left,
        checkpoint_iteration=saved.iteration if saved else None,
        checkpoint_age=facts.now - saved.at if saved else None,
        checkpoint_bytes=saved.bytes if saved else None,
        at_risk_iterations=risk_iterations,
        at_risk_seconds=risk_seconds,
        starts=len(facts.starts),
        lost_iterations=lost_iterations,
        lost_seconds=lost_seconds,
        between_seconds=_between(facts),
        hours=_hours(facts, state),
        on_gpus=any(start.gpus for start in facts.starts),
        cut=facts.cut,
        tuning=facts.tuning,
        queue=facts.queue,
    )


def _state(facts: RunFacts) -> tuple[str, str]:
    """(state, why). A heartbeat outranks a recorded end, and this outranks the queue, which may
    still show a job for a moment after its run has ended."""
    holder, queue = facts.holder, facts.queue
    last = facts.starts[-1] if facts.starts else None
    if holder is not None and holder.is_alive:
        return RUNNING, holder.text
    if last is not None and last.exit_code == 0:
        return DONE, (last.outcome or "").partition(DONE_BUT)[2]
    if last is not None and last.exit_code not in (None, REQUEUE, LOST):
        return FAILED, f"{_first_line(last.outcome)} (exit code {last.exit_code})"
    if queue is not None and queue.state == "PENDING":
        return QUEUED, _ending(facts, last)
    if queue is not None and queue.state in ("RUNNING", "CONFIGURING"):
        return STARTING, f"the job runs, its heartbeat is not here yet; {_ending(facts, last)}"
    if last is None:
        return NEW, "no start has begun"
    state = STOPPED if last.exit_code in (REQUEUE, LOST) else KILLED
    return state, f"{_ending(facts, last)}; start again to resume"


def _ending(facts: RunFacts, last: PastStart | None) -> str:
    """A sentence about the end of the last start."""
    if last is None:
        return "no start has begun"
    if last.exit_code is not None:
        return f"start {last.number} {_first_line(last.outcome)} (exit code {last.exit_code})"
    holder = facts.holder
    if holder is None:
        return f"start {last.number} has no recorded end, and nobody holds the folder"
    if holder.has_ended:
        return f"the process has ended without a word ({holder.text})"
    return f"no heartbeat for {holder.silence:.0f} s ({holder.text})"


def _first_line(text: str | None) -> str:
    return (text or "no reason recorded").strip().partition("\n")[0]


def _iteration(facts: RunFacts) -> int:
    if facts.rows:
        return facts.rows[-1].iteration
    return facts.checkpoint.iteration if facts.checkpoint else 0


def _seconds_per_iteration(facts: RunFacts) -> float | None:
    """Mean over recent iterations, which span whole evaluation intervals. Left out, where others
    are known: the first iteration of a start, which warms up and holds the evaluation before
    training; and iterations of earlier starts, which may have had other GPUs."""
    first = {(start.resumed_from or 0) + 1 for start in facts.starts}
    begin = (facts.starts[-1].resumed_from or 0) if facts.starts else 0
    recent = facts.rows[-max(RECENT, 2 * facts.evaluation_every) :]
    steady = [row for row in recent if row.iteration not in first]
    present = [row for row in steady if row.iteration > begin]
    rows = (present if len(present) >= ENOUGH else steady) or recent
    return fmean(row.whole for row in rows) if rows else None


def _at_risk(facts: RunFacts, state: str) -> tuple[int, float]:
    """(iterations, seconds) of work since the last committed checkpoint."""
    saved = facts.checkpoint.iteration if facts.checkpoint else 0
    since = [row for row in facts.rows if row.iteration > saved]
    if state != RUNNING or not facts.starts:
        return len(since), sum(row.whole for row in since)
    began = facts.starts[-1].began
    commit = facts.checkpoint.at if facts.checkpoint else began
    return len(since), max(0.0, facts.now - max(began, commit))


def _lost(facts: RunFacts, rate: float | None) -> tuple[int, float]:
    """(iterations, seconds) of repeated work, from each start's record; for records without it,
    from the recorded end of the previous start."""
    iterations, seconds = 0, 0.0
    for before, start in pairwise(facts.starts):
        if start.found is not None:
            iterations += start.found.iterations
            seconds += start.found.seconds
        elif before.iteration is not None:
            repeated = max(0, before.iteration - (start.resumed_from or 0))
            iterations += repeated
            seconds += repeated * (rate or 0.0)
    return iterations, seconds


def _between(facts: RunFacts) -> float:
    gaps = (after.began - end_of(start, after) for start, after in pairwise(facts.starts))
    return sum(max(0.0, gap) for gap in gaps)


def _hours(facts: RunFacts, state: str) -> float:
    ends = [(start, end_of(start, after)) for start, after in pairwise(facts.starts)]
    if facts.starts:
        ends.append((facts.starts[-1], _last_end(facts, state)))
    return sum(start.world * max(0.0, end - start.began) for start, end in ends) / 3600


def _last_end(facts: RunFacts, state: str) -> float:
    """Time of the last start's end; `now` while it runs; for a killed one, of its last sign of
    life."""
    last = facts.starts[-1]
    if last.ended is not None:
        return last.ended
    if state == RUNNING:
        return facts.now
    heartbeat = facts.now - facts.holder.silence if facts.holder else None
    return max(last.began, facts.last_line or 0.0, heartbeat or 0.0)
