"""Long loops: each step is progress for the watchdogs, an ear for signals, and now and then a line.

Where a signal has come and the work may be stopped (`signals.stoppable`), a step raises
StopRequested, on every rank alike:

    in one process            at once
    inside `run_on_main`      rank 0 asks the waiting ranks, which count as alive meanwhile
    with together             every rank makes equally many steps, and they agree at each

Elsewhere, and in other threads, a step only counts as progress: one rank would stop alone.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from adrpo_scale.core import dist, signals, watchdog
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import StopRequested

log = logging.getLogger(__name__)

T = TypeVar("T")
LINE_EVERY = 15.0  # seconds between lines of a loop
_LOOK_EVERY = 0.5  # seconds between two steps beside a long call


class Pace:
    """The steps of one loop. what: its name in lines. total: of the units, or of the bytes.
    together: see the module. stride: steps between two agreements, where steps are short."""

    def __init__(
        self,
        what: str,
        total: int,
        unit: str = "bytes",
        *,
        together: bool = False,
        stride: int = 1,
    ) -> None:
        self._what, self._total, self._unit, self._together = what, total, unit, together
        self._done, self._steps, self._stride = 0, 0, stride
        self._shown = self._began = time.monotonic()

    def step(self, count: int = 1) -> None:
        """Progress by `count` units. May raise StopRequested, as the module says."""
        self._done += count
        self._steps += 1
        if self._steps % self._stride == 0:
            safe_point(self._together)
        now = time.monotonic()
        if now - self._shown >= LINE_EVERY and _is_main_thread() and dist.is_main():
            self._shown = now
            done, total = self._amount(self._done), self._amount(self._total)
            unit = "" if self._unit == "bytes" else f" {self._unit}"
            line = f"{self._what}: {done} of {total}{unit}, {now - self._began:.0f} s"
            log.info("%s", line)
            print(line, file=sys.stderr)  # standard output may be JSON

    def _amount(self, count: int) -> str:
        return size_text(count) if self._unit == "bytes" else str(count)


def paced(
    items: Sequence[T], what: str, unit: str, *, together: bool = False, stride: int = 1
) -> Iterator[T]:
    """The items of a loop, each a step once its turn is over."""
    pace = Pace(what, len(items), unit, together=together, stride=stride)
    for item in items:
        yield item
        pace.step()


def stepping(work: Callable[[], T]) -> T:
    """The result of a library's long call, made in a thread, with steps meanwhile. A stop leaves
    the thread behind, which ends with the process."""
    found: list[T] = []
    faults: list[BaseException] = []

    def tried() -> None:
        try:
            found.append(work())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=tried, name="long call", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_EVERY)
        safe_point()
    if faults:
        raise faults[0]
    return found[0]


def safe_point(together: bool = False) -> None:
    """Progress without a loop. together: every rank comes here; otherwise as the module says."""
    watchdog.beat()
    if not _is_main_thread():
        return
    if together:
        asked = signals.may_stop() and bool(dist.all_max(torch.tensor(float(signals.heard()))))
    elif dist.is_waited_for():
        asked = dist.still_working()
    else:
        asked = dist.world_size() == 1 and signals.heard()
    if asked:
        raise StopRequested(saveable=False)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
