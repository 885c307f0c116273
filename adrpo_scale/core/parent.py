"""What a process owes to the one that started it: it ends when that one does."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


def end_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Has this process end when its parent does, also in the middle of an endless call. by: the
    signal that ends it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(by))
    if os.getppid() != parent:
        os._exit(0)


def hear_no_stop(handler: Callable[..., Any] | signal.Handlers) -> None:
    """Leaves the signals that stop a run to the run: Slurm sends them to each process of a step.
    handler: a function, which what this process starts does not inherit, or SIG_IGN, which it
    does."""
    for number in _STOPS:
        signal.signal(number, handler)
