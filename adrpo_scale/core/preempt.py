"""Signals → a stop that all ranks agree on.

Signals (see `signals`) only set a flag: Slurm sends several, to some ranks earlier than to others,
and an exception in the middle of a collective would leave the other ranks waiting. At safe points,
which every rank passes equally often, the flags are combined over a process group of their own,
and all ranks stop at the same point. Only a second SIGINT on a terminal ends the process at once.
SIGHUP comes from a terminal that is closed; nohup ignores it, and it stays ignored then.
"""

from __future__ import annotations

import logging
import time

import torch

from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import StopRequested
from adrpo_scale.core.signals import SIGNALS as SIGNALS
from adrpo_scale.core.signals import Signals as Signals

log = logging.getLogger(__name__)


class Stop:
    """The safe points of a run. Every rank calls the collective methods equally often. Without
    signals the run never stops."""

    def __init__(
        self,
        signals: Signals | None = None,
        grace_seconds: float = 120.0,
        timeout_seconds: float = 1800.0,
    ) -> None:
        """grace_seconds: time from a signal to the kill that follows. timeout_seconds: of the
        agreement between ranks."""
        self.signals = signals or Signals()
        self.grace_seconds = grace_seconds
        self._group = dist.new_group(timeout_seconds)
        self._clean_since: float | None = None
        self._longest = 0.0
        self._warned = False

    def check(self) -> None:
        """A safe point before the first update of an iteration: raises StopRequested, saveable, if
        any rank was signalled. Collective."""
        now = time.monotonic()
        if self._clean_since is not None:
            self._longest = max(self._longest, now - self._clean_since)
        self._clean_since = now
        asked, _ = self._agreed(0.0)
        if asked:
            raise StopRequested(saveable=True)

    def check_unfinished(self, seconds_needed: float) -> None:
        """A safe point between the updates of an iteration: raises StopRequested, not saveable, if
        any rank was signalled and `seconds_needed` (to finish the updates and save) exceed the
        grace that is left. Collective."""
        self._clean_since = None
        asked, late = self._agreed(seconds_needed)
        if asked and late > 0:
            log.warning("the updates cannot be finished in time: the last commit stands")
            raise StopRequested(saveable=False)

    def _agreed(self, seconds_needed: float) -> tuple[bool, float]:
        """(whether any rank was signalled, by how many seconds the slowest would be late)."""
        watchdog.beat()
        waited = self.signals.seconds
        late = (waited or 0.0) + seconds_needed - self.grace_seconds
        mine = torch.tensor([waited is not None, late], dtype=torch.float64)
        asked, late = dist.all_max(mine, self._group).tolist()
        return bool(asked), late

    def warn_if_slow(self, update_seconds: float, save_seconds: float) -> None:
        """Warns once if a stop can take longer than the grace: the longest time between two safe
        points, plus the updates of an iteration, plus a save."""
        total = self._longest + update_seconds + save_seconds
        if total > self.grace_seconds and not self._warned:
            self._warned = True
            is_chunk = total - self._longest <= self.grace_seconds
            log.warning(
                "a stop may take %.0f s (longest chunk %.0f, updates %.0f, save %.0f), but "
                "checkpoint.grace_seconds is %.0f: send the signal earlier (sbatch "
                "--signal=USR1@%.0f) and raise grace_seconds%s",
                total,
                self._longest,
                update_seconds,
                save_seconds,
                self.grace_seconds,
                1.5 * total,
                ", or lower domain.rollout_chunk" if is_chunk else "",
            )
