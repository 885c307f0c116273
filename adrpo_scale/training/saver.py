"""The times of a run's saves, and the handling of failed ones."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.store import FULL, WEIGHTS, Saved, Store
from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import CheckpointError, agreed
from adrpo_scale.core.failure import says_lost
from adrpo_scale.training.metrics import MetricsLog, is_due
from adrpo_scale.training.state import TrainingState

log = logging.getLogger(__name__)


class Saver:
    """The cadence of [checkpoint] over a store. Every method is collective."""

    def __init__(
        self, store: Store, config: CheckpointConfig, state: TrainingState, metrics: MetricsLog
    ) -> None:
        self._store, self._config, self._state, self._metrics = store, config, state, metrics
        self._last = time.monotonic()
        self._saved_state = (-1, -1)  # (iteration, evaluated) of the newest save, maybe under way
        self._noticed = 0  # number of ended saves that were checked for failures

    @property
    def seconds(self) -> float:
        """Seconds of the last save, from its copy to its commit; 0 before the first."""
        return self._store.ended[-1].seconds if self._store.ended else 0.0

    def resumed(self) -> None:
        """Marks the present state as saved: it was read from a checkpoint."""
        self._saved_state = self._now

    @property
    def _now(self) -> tuple[int, int]:
        return self._state.counters.iteration, self._state.counters.evaluated

    def check_owner(self) -> None:
        """Raises RunFolderError where another process has taken over the run's folder."""
        self._store.check_owner()

    def check_room(self) -> None:
        """Raises DiskSpaceError where the disk has no room for the run's checkpoints."""
        self._store.check_room(self._state.sets(FULL))

    def maybe_save(self, evaluated: bool) -> None:
        """Saves at an iteration's end, where that is due. evaluated: an evaluation has just ended.

        Raises CheckpointError where a save has failed and `on_failure` is `stop`.
        """
        self._notice_failure()
        done, config = self._state.counters.iteration, self._config
        if is_due(config.keep_trajectory, done):
            self._save(WEIGHTS)
        due = (
            is_due(config.every_iterations, done)
            or is_due(config.keep_every, done)
            or (config.keep_best > 0 and evaluated)
        )
        if self._time_is_up() or due:
            self._save(FULL)

    def _time_is_up(self) -> bool:
        """True where `every_minutes` have passed on any rank; clocks of ranks differ."""
        minutes = self._config.every_minutes
        return _any_rank(minutes > 0 and time.monotonic() - self._last >= 60 * minutes)

    def save_now(self) -> None:
        """Saves unless the present state is saved already, and waits for the commit.

        Raises CheckpointError where the save fails.
        """
        self._look_at(self._wait())
        if self._saved_state != self._now:
            self._save(FULL)
            failure = self._look_at(self._wait())
            if failure is not None and says_lost(str(failure.error)):
                raise RuntimeError(
                    failure.error
                )  # a lost process, not the disk: see `failure.is_lost`
            if failure is not None:
                raise agreed(
                    CheckpointError(
                        f"the state after iteration {failure.iteration} was not saved: "
                        f"{failure.error}. The checkpoint before it is untouched"
                    )
                )

    def _save(self, kind: str) -> None:
        # `metrics.sync` comes before the manifest: a resume relies on every line up to the
        # checkpoint's iteration.
        sets, document = self._state.sets(kind), self._state.document()
        with watchdog.phase("save"):
            self._store.save(kind, self._now[0], sets, document, self._metrics.sync)
        if kind == FULL:
            self._last, self._saved_state = time.monotonic(), self._now

    def _notice_failure(self) -> None:
        if not _any_rank(any(saved.error for saved in self._store.ended[self._noticed :])):
            return
        failure = self._look_at(self._wait())
        is_final = _any_rank(failure is not None and failure.is_final)
        if is_final or (failure is not None and self._config.on_failure == "stop"):
            why = "no later one can be" if is_final else 'checkpoint.on_failure = "stop" says so'
            what = failure.error if failure is not None else "see the error of another rank"
            raise agreed(
                CheckpointError(
                    f"a checkpoint was not written: {what}. The one before is untouched; the run "
                    f"stops: {why}. Fix the cause and start again to resume"
                )
            )

    def _wait(self) -> list[Saved]:
        """Waits for a save under way; returns the saves that ended since the last call, the same on
        every rank."""
        self.close()
        new, self._noticed = self._store.ended[self._noticed :], len(self._store.ended)
        return new

    def _look_at(self, ended: list[Saved]) -> Saved | None:
        """The last failure among `ended`. A state whose save failed counts as not saved."""
        failures = [saved for saved in ended if saved.error]
        if any(f.kind == FULL and f.iteration == self._saved_state[0] for f in failures):
            self._saved_state = (-1, -1)
        return failures[-1] if failures else None

    def close(self, seconds: float | None = None) -> None:
        """Waits for a save under way, at most some seconds."""
        with watchdog.phase("save"):
            self._store.wait(seconds)


def _any_rank(flag: Any) -> bool:
    return bool(dist.all_max(torch.tensor(float(bool(flag)))))
