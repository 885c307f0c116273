"""What a run took, from its records of starts and its metrics: work that is in the result, work
that was done again, and starts that left nothing.

Hours are of processes, which are GPUs where a run has them. Records have whole seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adrpo_scale.core.json_files import number_of
from adrpo_scale.core.run_rows import METRICS, Row, metric_rows
from adrpo_scale.run.past_starts import PastStart, end_of, past_starts


@dataclass(frozen=True)
class Cost:
    """Process-hours. kept: of the iterations that the result has. repeated: of iterations that a
    later start did again. lost: of starts of which no iteration is left, but for the repeated ones.
    rest: loading, evaluating before training, saving, waiting. open_ends: starts without a recorded
    end or a successor, counted up to their last iteration. on_gpus: starts that had GPUs."""

    kept: float = 0.0
    repeated: float = 0.0
    lost: float = 0.0
    rest: float = 0.0
    starts: int = 0
    repeated_iterations: int = 0
    open_ends: int = 0
    on_gpus: int = 0

    @property
    def total(self) -> float:
        return self.kept + self.repeated + self.lost + self.rest

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{name: value + vars(other)[name] for name, value in vars(self).items()})


def cost_of(run: Path) -> Cost:
    """The cost of a run; nothing where no start is recorded."""
    starts, rows = list(past_starts(run)), metric_rows(run / METRICS)
    owned: list[list[Row]] = [[] for _ in starts]
    for row in rows:
        owner = _owner(starts, row["iteration"])
        if owner is not None:
            owned[owner].append(row)
    found = Cost()
    for number, start in enumerate(starts):
        later = starts[number + 1] if number + 1 < len(starts) else None
        found += _cost(start, later, sum(map(_seconds, owned[number])))
    return found


def _owner(starts: Sequence[PastStart], iteration: int) -> int | None:
    """The start whose work an iteration is: the last one that resumed before it."""
    numbers = [k for k, start in enumerate(starts) if (start.resumed_from or 0) < iteration]
    return numbers[-1] if numbers else None


def _seconds(row: Row) -> float:
    return number_of(row, "seconds") + number_of(row, "seconds_between")


def _cost(start: PastStart, later: PastStart | None, kept: float) -> Cost:
    """kept: seconds of its iterations that are left."""
    again = later.found if later is not None else None
    end = start.ended or start.began + kept
    if later is not None:
        end = end_of(start, later)
    repeated = again.seconds if again is not None else 0.0
    hour = start.world / 3600
    rest = hour * max(0.0, end - start.began - kept - repeated)
    found = Cost(
        kept=hour * kept,
        repeated=hour * repeated,
        starts=1,
        repeated_iterations=again.iterations if again is not None else 0,
        open_ends=int(later is None and start.ended is None),
        on_gpus=int(start.gpus > 0),
    )
    return replace(found, rest=rest) if kept else replace(found, lost=rest)
