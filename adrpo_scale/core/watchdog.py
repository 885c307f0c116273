"""Ends a process that makes no progress, after its stacks are written down.

A rank that hangs (a dead GPU, a file server, a user's reward function) makes all ranks hang: they
wait for it in the next collective. So every rank watches itself, all watchdogs fire within moments
of each other, and each writes the stacks of its threads into `RUN/stacks/`. Then the process ends
with the exit code that asks for a requeue; it would otherwise use up the allocation's time.

Progress is a call of `beat`: at safe points, after chunks, at each tensor that is read, and at the
beginning and end of a `phase`. A process has one watchdog, because it has one `faulthandler`; where
none is running, these calls only remember a name. Timers of the kernel's are left to other code.
"""

from __future__ import annotations

import faulthandler
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from adrpo_scale.core.errors import STOPPED
from adrpo_scale.core.exits import leave
from adrpo_scale.core.files import own
from adrpo_scale.core.watchdog_guard import STACKS, Guard

log = logging.getLogger(__name__)

FOLDER = "stacks"
_OTHERS = 20.0  # seconds for the other ranks to notice the hang before their sockets break
_WRITING = 30.0  # seconds for the stacks to be written, to a disk that may itself be hanging
_BACKSTOP = 60.0  # seconds after which the guard acts, should Python itself be stuck
_MORE = {"load": 3}  # factor on the seconds: a single step may load a model from a slow disk

_phases: list[str] = ["start"]  # of the main thread, the innermost last
_failed = ""  # the innermost phase that the newest exception has left
_last = time.monotonic()  # time of the newest progress
_patience = 0.0  # further seconds that this process may wait for others
_allowed: float | None = None  # seconds without progress, of the watchdog that is running


def beat() -> None:
    """Records progress."""
    global _last
    _last = time.monotonic()


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Names the work of the main thread inside the block: "rollout", "reward", "save", ..."""
    global _failed
    _phases.append(name)
    _failed = ""
    beat()
    try:
        yield
    except BaseException:
        _failed = _failed or name
        raise
    finally:
        _phases.pop()
        beat()


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Allows more time without progress inside the block, where this process waits for others whose
    work has a time limit of its own."""
    global _patience
    _patience += seconds
    try:
        yield
    finally:
        beat()
        _patience -= seconds


def limit() -> float | None:
    """Seconds without progress after which this process would be ended in the present phase; None
    where no watchdog is running."""
    return None if _allowed is None else _allowed * _MORE.get(where(), 1) + _patience


def where() -> str:
    """The phase that the main thread is in."""
    return _phases[-1]


def failed_in() -> str:
    """The phase in which an exception that is on its way was raised."""
    return _failed or where()


class Watchdog:
    """Watches this process inside a `with` block.

    run: the run folder, for the stacks. rank: of this process. seconds: the longest time without
    progress. on_hang: called with one line that describes the hang, before the process ends; it is
    cut off after 30 s.
    """

    def __init__(
        self,
        run: Path,
        rank: int,
        seconds: float,
        on_hang: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._file = run / FOLDER / f"rank-{rank:04d}.txt"
        self._rank, self._seconds, self._on_hang = rank, seconds, on_hang
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        global _allowed
        beat()
        _allowed = self._seconds
        faulthandler.register(STACKS, file=2, chain=True)
        self._guard = Guard(self._seconds + _BACKSTOP)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        global _allowed
        self._done.set()
        self._thread.join()
        _allowed = None

    def _watch(self) -> None:
        step = min(10.0, self._seconds / 4)
        try:
            while not self._done.wait(step):
                self._guard.tell()
                silent = time.monotonic() - _last
                if silent > (limit() or self._seconds):
                    self._end(silent)
        finally:
            self._guard.close()
            faulthandler.unregister(STACKS)

    def _end(self, silent: float) -> None:
        slow = ""
        if where() == "reward":
            slow = "; a reward that may take longer wants a time_limit"
            slow += f" (one without may take {_patience:.0f} s more)" if _patience else ""
        line = (
            f"rank {self._rank} on {socket.gethostname()}: no progress for {silent:.0f} s in "
            f"{where()} (limits.hang_seconds = {self._seconds:g}); stacks in {self._file}{slow}"
        )
        begin = time.monotonic()
        writer = threading.Thread(target=self._tell, args=(line,), daemon=True)
        writer.start()
        writer.join(_WRITING)
        self._done.wait(max(0.0, min(_OTHERS, self._seconds) - (time.monotonic() - begin)))
        leave(STOPPED)  # without clean-up, which would hang too

    def _tell(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        with suppress(OSError):  # the line is printed already; the process must end in any case
            self._file.parent.mkdir(exist_ok=True)
            with open(self._file, "a", opener=own) as file:
                file.write(f"{time.strftime('%F %T')} {line}\n")
                file.flush()
                faulthandler.dump_traceback(file)
                file.write("\n")
        self._on_hang(line)
