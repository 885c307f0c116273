"""Status → a block of lines, a table, or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from adrpo_scale.cluster.status import queue
from adrpo_scale.cluster.status import read as folders
from adrpo_scale.cluster.status.base import DONE, RUNNING, RunFacts, Status
from adrpo_scale.cluster.status.evaluations import block, evaluations_in
from adrpo_scale.cluster.status.state import RECENT, judge
from adrpo_scale.core.console import wide
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import RunFolderError, given
from adrpo_scale.core.printable import one_line

_NONE = "–"


def show(runs: Sequence[Path], as_json: bool) -> int:
    """Prints the status of each run, in the given order. Returns the exit code: 2 where a folder is
    not that of a run. A trial's folder among others is only a note: `runs/*` includes trials.
    Evaluations are shown after the runs."""
    judged = [one for run in runs for one in evaluations_in(run)]
    runs = [run for run in runs if not evaluations_in(run)]
    answers = statuses(runs)
    if as_json:
        pairs = zip(runs, answers, strict=True)
        documents = [_document(run, answer) for run, answer in pairs]
        documents += [{**asdict(one), "kind": "evaluation", "error": None} for one in judged]
        print(json.dumps(documents, indent=2))
    else:
        _show([answer for answer in answers if isinstance(answer, Status)])
        for one in judged:
            _print_block(block(one))
    errors = [answer for answer in answers if isinstance(answer, RunFolderError)]
    notes = [error for error in errors if isinstance(error, folders.TrialFolderError)]
    if len(notes) == len(answers) and not judged:
        notes = []
    for error in errors:
        print(f"{'note' if error in notes else 'error'}: {error}", file=sys.stderr)
    return 2 if len(errors) > len(notes) else 0


def statuses(runs: Sequence[Path]) -> list[Status | RunFolderError]:
    """The status of each run, or its error; the queue is asked once for all jobs."""
    found = [facts_of(run) for run in runs]
    asked = iter(with_queue([facts for facts in found if isinstance(facts, RunFacts)]))
    return [judge(next(asked)) if isinstance(facts, RunFacts) else facts for facts in found]


def facts_of(run: Path) -> RunFacts | RunFolderError:
    """The facts of a run folder, or its error; the queue is not asked."""
    try:
        return folders.read(run)
    except RunFolderError as error:
        return error


def with_queue(known: Sequence[RunFacts]) -> list[RunFacts]:
    """The facts with their entries in Slurm's queue, which is asked once."""
    jobs = [_job(facts) for facts in known]
    entries = queue.ask(job for job in jobs if job)
    return [
        replace(facts, queue=entries.get(job or "")) for facts, job in zip(known, jobs, strict=True)
    ]


def _job(facts: RunFacts) -> str | None:
    """The Slurm job that holds the folder, or held it last."""
    if facts.holder is not None and facts.holder.is_alive:
        return facts.holder.job
    return facts.starts[-1].job if facts.starts else None


def _document(run: Path, answer: Status | RunFolderError) -> dict[str, Any]:
    if isinstance(answer, Status):
        # `lives`: the first name of `starts`, which programs may read.
        return {**asdict(answer), "lives": answer.starts, "error": None}
    return {"run": str(run), "error": str(answer)}


def _show(answers: Sequence[Status]) -> None:
    console = wide()
    if len(answers) == 1:
        _print_block(_block(answers[0]))
    elif answers:
        console.print(_table(answers))


def _print_block(lines: Sequence[tuple[str, str]]) -> None:
    for name, text in lines:
        wide().print(f"{name:<11}{text}", highlight=False, soft_wrap=True)


def _block(status: Status) -> list[tuple[str, str]]:
    """(heading, text) of each line about a run."""
    lines = [
        ("run", status.run),
        ("state", f"{status.state}: {status.why}" if status.why else status.state),
        ("iteration", _iteration_text(status)),
    ]
    if status.reward is not None:
        lines.append(("reward", _reward_text(status)))
    if status.seconds_per_iteration is not None:
        lines.append(("time", _time_text(status)))
    if status.cut is not None:
        lines.append(("prompts", status.cut))
    lines += [("tuning", text) for text in status.tuning]
    lines.append(("checkpoint", _checkpoint_text(status)))
    lines.append(("starts", _starts_text(status)))
    lines.append(("used", f"{_hours_text(status)} {_hours_of(status)}"))
    if status.queue is not None:
        lines.append(("queue", _queue_text(status)))
    return [(heading, one_line(text)) for heading, text in lines]


def _iteration_text(status: Status) -> str:
    return f"{status.iteration} of {status.iterations or '?'}"


def _reward_text(status: Status) -> str:
    recent, measured = min(RECENT, max(1, status.iteration)), status.evaluation
    text = f"{status.reward:.4g} (mean of the last {recent})"
    if measured is None:
        return text
    before, now = _number(measured.before), _number(measured.now)
    return f"{text}; evaluated on {measured.split}: {before} → {now}"


def _time_text(status: Status) -> str:
    each = f"{duration(status.seconds_per_iteration)} an iteration, evaluations and saves included"
    if status.state == DONE or not status.seconds_left:
        return each
    return f"{each}; {duration(status.seconds_left)} left"


def _checkpoint_text(status: Status) -> str:
    risk = f"{_count(status.at_risk_iterations, 'iteration')}, {duration(status.at_risk_seconds)}"
    if status.state == RUNNING:
        after = f"at risk since: {risk}"
    else:
        after = f"{risk} since are to be done again" if status.at_risk_iterations else ""
    if status.checkpoint_iteration is None:
        return f"none yet; {after}" if after else "none yet"
    size, age = size_text(status.checkpoint_bytes or 0), duration(status.checkpoint_age)
    text = f"iteration {status.checkpoint_iteration}, {age} ago, {size}"
    return f"{text}; {after}" if after else text


def _starts_text(status: Status) -> str:
    if status.starts < 2:
        return str(status.starts)
    again = f"{_count(status.lost_iterations, 'iteration')} ({duration(status.lost_seconds)})"
    return f"{status.starts}; {again} done again, {duration(status.between_seconds)} between starts"


def _hours_of(status: Status) -> str:
    return "GPU-hours" if status.on_gpus else "process-hours"


def _hours_text(status: Status) -> str:
    return f"{status.hours:.3g}" if status.hours < 100 else f"{status.hours:,.0f}"


def _queue_text(status: Status) -> str:
    entry = given(status.queue)
    text = f"job {entry.job} ({entry.name}) {entry.state}"
    if entry.state == "PENDING":
        text += f": {entry.reason}" if entry.reason else ""
        return text + (f", expected to start {entry.start}" if entry.start else "")
    text += f" on {entry.nodes}" if entry.nodes else ""
    return text + (f", {entry.left} left of its time limit" if entry.left else "")


def _table(answers: Sequence[Status]) -> Table:
    headings = ("run", "state", "iteration", "reward", "evaluated", "left", "checkpoint", "at risk")
    table = Table(*headings, "starts", "again", _hours_heading(answers), "queue")
    for status in answers:
        table.add_row(*map(one_line, _cells(status)))
    return table


def _hours_heading(answers: Sequence[Status]) -> str:
    words = {_hours_of(status) for status in answers}
    return words.pop() if len(words) == 1 else "hours"


def _cells(status: Status) -> list[str]:
    measured, entry = status.evaluation, status.queue
    evaluated = f"{_number(measured.before)} → {_number(measured.now)}" if measured else _NONE
    saved = status.checkpoint_iteration
    is_over = status.state == DONE
    return [
        Path(status.run).name or status.run,
        status.state,
        f"{status.iteration}/{status.iterations or '?'}",
        _number(status.reward),
        evaluated,
        _NONE if is_over or status.seconds_left is None else duration(status.seconds_left),
        _NONE if saved is None else f"{saved}, {duration(status.checkpoint_age)} ago",
        _NONE if is_over else f"{status.at_risk_iterations}, {duration(status.at_risk_seconds)}",
        str(status.starts),
        duration(status.lost_seconds) if status.starts > 1 else _NONE,
        _hours_text(status),
        _NONE if entry is None else f"{entry.job} {entry.reason or entry.state}",
    ]


def _number(value: float | None) -> str:
    return _NONE if value is None else f"{value:.4g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def duration(seconds: float | None) -> str:
    """A duration for people: 4.2 s, 12 s, 4 min, 2 h 05 min, 3 d 04 h."""
    if seconds is None:
        return _NONE
    if seconds < 59.95:
        return f"{max(0.0, seconds):.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"
