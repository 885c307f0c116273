"""A signal that comes while a run loads is heard even where no step of a loop asks for it.

Libraries import, read and connect for as long as they like, in C code too, where Python's handlers
wait. The kernel's handler writes every signal into a pipe, and a thread reads it: where a signal
is not answered in time, it ends the process. Nothing is lost, because a run that loads has nothing
to save.
"""

from __future__ import annotations

import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from adrpo_scale.core.errors import STOPPED
from adrpo_scale.core.exits import leave
from adrpo_scale.core.signals import SIGNALS

_STEP = 0.5  # seconds between two looks at whether the block is over

Act = Callable[[str, float], object]
"""Called before the end with the signal's name and the seconds since it came."""


class Leaving:
    """Ends this process, with the exit code of a stop, `seconds` after the first signal inside a
    `with` block, unless the block or `over` comes first. Enter it inside `Signals`, in the main
    thread. acts: called before the end, the newest first; more may be added."""

    def __init__(self, seconds: float) -> None:
        self.acts: list[Act] = []
        self._seconds = seconds
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._wait, name="leaving", daemon=True)

    def __enter__(self) -> Leaving:
        self._reads, self._writes = socket.socketpair()
        self._writes.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writes.fileno(), warn_on_full_buffer=False)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over()

    def over(self) -> None:
        """Ends the watch, because there is something to save now, or a stop is under way."""
        if not self._done.is_set():
            self._done.set()
            signal.set_wakeup_fd(self._before)
            self._watch.join()
            self._reads.close()
            self._writes.close()

    def _wait(self) -> None:
        while not self._done.is_set():
            if select.select([self._reads], [], [], _STEP)[0]:
                sent = {*self._reads.recv(4096)} & {*SIGNALS}
                if sent:
                    self._answer(signal.Signals(min(sent)).name)

    def _answer(self, name: str) -> None:
        begin = time.monotonic()
        if self._done.wait(self._seconds):
            return
        waited = time.monotonic() - begin
        print(
            f"{name}: stopped {waited:.1f} s after it, while loading", file=sys.stderr, flush=True
        )
        for act in reversed(self.acts):
            with suppress(Exception):
                act(name, waited)
        leave(STOPPED)
