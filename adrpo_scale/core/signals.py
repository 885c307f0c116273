"""Signals that ask this process to stop: caught, counted, and answered by whoever asks."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from adrpo_scale.core.errors import StopRequested

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


_caught: list[Signals] = []  # the blocks that are under way, the innermost last
_stoppable = 0  # number of `stoppable` blocks that are under way


class Signals:
    """Catches SIGNALS inside a `with` block, in the main thread. name: of the first signal, at: its
    time (time.monotonic), both None before it; count: number of signals so far."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.at: float | None = None
        self.count = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
        self._before = {
            number: signal.signal(number, self._note) for number in SIGNALS if number not in ignored
        }
        _caught.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        _caught.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.at is None:
            self.name, self.at = signal.Signals(number).name, time.monotonic()
        elif number == signal.SIGINT and sys.stdin is not None and sys.stdin.isatty():
            raise KeyboardInterrupt  # a person who asks twice does not want to wait

    @property
    def seconds(self) -> float | None:
        """Seconds since the first signal; None before it."""
        return None if self.at is None else time.monotonic() - self.at


@contextmanager
def stoppable() -> Iterator[None]:
    """A block whose loops may be stopped by a signal, because nothing in it has to be finished."""
    global _stoppable
    _stoppable += 1
    try:
        yield
    finally:
        _stoppable -= 1


def may_stop() -> bool:
    """Whether a `stoppable` block is under way, inside one that catches signals."""
    return bool(_stoppable and _caught)


def heard() -> bool:
    """Whether a signal came that may stop what is under way."""
    return may_stop() and _caught[-1].at is not None


def stop_if_heard() -> None:
    """Raises StopRequested, saveable, where a signal came that may stop what is under way."""
    if heard():
        raise StopRequested(saveable=True)


class Signalled(BaseException):
    """Raised by a signal at any moment: libraries that are being imported then wrap an Exception
    into one of their own."""


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """A block that goes on wherever it was ended: SIGTERM and SIGUSR1 end it with StopRequested, so
    that its `finally` clauses run. Slurm repeats its signals; those after the first are ignored."""
    caught = (signal.SIGTERM, signal.SIGUSR1)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise Signalled

    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    except Signalled:
        raise StopRequested(saveable=False) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
