"""The facts of a run, and the status that follows from them.

    read.py    run folder → RunFacts        queue.py   job id → QueueEntry
    state.py   RunFacts → Status            view.py    Status → block, table, JSON

Times are seconds since the epoch, durations are seconds. No module here imports torch, so that the
command answers at once on a login node.
"""

from __future__ import annotations

from dataclasses import dataclass

from adrpo_scale.run.past_starts import PastStart

RUNNING, STARTING, QUEUED, STOPPED = "running", "starting", "queued", "stopped"
DONE, FAILED, KILLED, NEW = "done", "failed", "killed", "new"


@dataclass(frozen=True)
class Row:
    """An iteration in metrics.jsonl. between: seconds since the end of the previous iteration,
    which its evaluation, save and log took."""

    iteration: int
    reward: float | None
    seconds: float
    between: float = 0.0

    @property
    def whole(self) -> float:
        return self.seconds + self.between


@dataclass(frozen=True)
class Evaluation:
    """The evaluated reward of a split. before: at iteration 0; now: mean of the last three."""

    split: str
    before: float | None
    now: float | None


@dataclass(frozen=True)
class Holder:
    """The holder in lock.json. silence: seconds since its heartbeat; expiry: seconds of silence
    after which it counts as dead; has_ended: its process is known to have ended."""

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
    """A job in squeue. state: PENDING, RUNNING, …; start: time of its start, past or expected; None
    if unknown. left: time left of its limit, in squeue's format."""

    job: str
    name: str
    state: str
    reason: str
    start: str | None
    left: str | None
    nodes: str


@dataclass(frozen=True)
class RunFacts:
    """The facts of a run folder at the time `now`. iterations: None before the first start has
    written config.json. last_line: time of the last change of metrics.jsonl. cut: a line about
    prompts that encoders cut."""

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
    cut: str | None = None
    tuning: tuple[str, ...] = ()
    queue: QueueEntry | None = None


@dataclass(frozen=True)
class Status:
    """The status of a run.

    why: the reason of the state, in one line. reward: mean of the last iterations.
    seconds_per_iteration: mean of recent ones, evaluations and saves included. at_risk: work that a
    kill now would undo or, where no process is alive, that the next start repeats. lost: repeated
    work, as far as records show. between: time from the end of each start to the next one.
    hours: processes times hours, over all starts; on_gpus: the processes used GPUs. cut: a line
    about prompts that encoders cut, or cannot tell apart. tuning: a line for each number of the
    first iterations that is outside its range, with the key to change.
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
    cut: str | None
    tuning: tuple[str, ...]
    queue: QueueEntry | None
