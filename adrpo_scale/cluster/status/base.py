"""The facts of a run, and the answer that is made of them.

    facts.py   run folder → RunFacts        queue.py   job id → QueueEntry
    state.py   RunFacts → Status            view.py    Status → block, table, JSON

Times are seconds since the epoch, durations are seconds. Nothing here loads torch: the answer is
wanted at once, on a login node, about runs that are under way.
"""

from __future__ import annotations

from dataclasses import dataclass

RUNNING, STARTING, QUEUED, STOPPED = "running", "starting", "queued", "stopped"
DONE, FAILED, KILLED, NEW = "done", "failed", "killed", "new"


@dataclass(frozen=True)
class Row:
    """An iteration in metrics.jsonl. between: seconds from the end of the iteration before, spent
    on its evaluation, save and log."""

    iteration: int
    reward: float | None
    seconds: float
    between: float = 0.0

    @property
    def whole(self) -> float:
        return self.seconds + self.between


@dataclass(frozen=True)
class Evaluation:
    """The reward of a split. before: of iteration 0; now: mean of the last three evaluations."""

    split: str
    before: float | None
    now: float | None


@dataclass(frozen=True)
class Found:
    """Work of the start before, after its last checkpoint, that a start does again. iterations,
    seconds: how much; last_line: when the last of it was written; None: nothing was."""

    iterations: int
    seconds: float
    last_line: float | None


@dataclass(frozen=True)
class PastStart:
    """One of lives/NN.json. ended to iteration: None where no end was written; iteration: -1 where
    it ended before it could train. resumed_from: None where it began anew."""

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


@dataclass(frozen=True)
class Holder:
    """Who is written in lock.json. silence: seconds since the heartbeat; expiry: seconds after
    which that counts as death; has_ended: it is known to be no more."""

    text: str
    host: str | None
    job: str | None
    silence: float
    expiry: float
    has_ended: bool = False

    @property
    def is_alive(self) -> bool:
        return not self.has_ended and self.silence <= self.expiry


@dataclass(frozen=True)
class Saved:
    """The newest committed checkpoint."""

    iteration: int
    at: float
    bytes: int


@dataclass(frozen=True)
class QueueEntry:
    """A job as squeue shows it. state: PENDING, RUNNING, ...; start: when it began, or is expected
    to; None where nobody knows. left: of its time limit, as squeue writes it."""

    job: str
    name: str
    state: str
    reason: str
    start: str | None
    left: str | None
    nodes: str


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run folder, at the time `now`. iterations: None before the first start has
    written config.json. last_line: when metrics.jsonl was last written to."""

    run: str
    now: float
    iterations: int | None = None
    evaluation_every: int = 0
    rows: tuple[Row, ...] = ()
    evaluation: Evaluation | None = None
    starts: tuple[PastStart, ...] = ()
    holder: Holder | None = None
    checkpoint: Saved | None = None
    last_line: float | None = None
    queue: QueueEntry | None = None


@dataclass(frozen=True)
class Status:
    """The answer about a run.

    why: a line about the state. reward: mean of the last iterations. seconds_per_iteration: of the
    recent ones, with their evaluations and saves. at_risk: what a kill now would undo, or, where no
    process is alive, what the next start will repeat. lost: work that was done again, as far as the
    records tell. between: from the end of a start to the begin of the next, in the queue or down.
    hours: processes times hours, over all starts; on_gpus: whether those were GPUs.
    """

    run: str
    state: str
    why: str
    iteration: int
    iterations: int | None
    reward: float | None
    evaluation: Evaluation | None
    seconds_per_iteration: float | None
    seconds_left: float | None
    checkpoint_iteration: int | None
    checkpoint_age: float | None
    checkpoint_bytes: int | None
    at_risk_iterations: int
    at_risk_seconds: float
    starts: int
    lost_iterations: int
    lost_seconds: float
    between_seconds: float
    hours: float
    on_gpus: bool
    queue: QueueEntry | None
