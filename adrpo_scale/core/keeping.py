"""State of this process that other people's code changes, put back after it ran.

A reward that changes the working directory would make every relative path of the run lead
elsewhere; one that switches gradients off, or the precision of products, would change the training
without a word. Random generators are left alone: no draw of the package uses a global one. So are
variables of the environment, but for the launcher's, and filters of warnings: they are set to last.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from adrpo_scale.core.exits import no_exit

log = logging.getLogger(__name__)

_LAUNCHER = (
    *("ADRPO_", "SLURM_", "MASTER_", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"),
)
_SIGNALS = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_told: set[tuple[str, str]] = set()  # (who, fact) of warnings so far


@dataclass(frozen=True)
class Fact:
    """One part of the state. read: its value now. write: puts a value back."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], object]


def _folder() -> str | None:
    with suppress(OSError):  # it was deleted
        return os.getcwd()
    return None


def _to_folder(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _umask() -> int | None:
    """Read where that is possible without a change: another thread may be writing a file."""
    with suppress(OSError), open("/proc/self/status") as status:
        return next((int(line.split()[1], 8) for line in status if line[:6] == "Umask:"), None)
    return None


def _to_umask(umask: int | None) -> None:
    if umask is not None:
        os.umask(umask)


def _handlers() -> dict[int, Any]:
    """Handlers of signals by number; None: one that Python did not set and cannot put back."""
    found = {number: signal.getsignal(number) for number in _SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not None}


def _to_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        now = _handlers()
        for number, handler in handlers.items():
            if now.get(number) != handler:
                signal.signal(number, handler)


class _Alarm:
    """The time at which the kernel's timer will ring; None: never."""

    def __init__(self) -> None:
        left, self.interval = signal.getitimer(signal.ITIMER_REAL)
        self.at = time.monotonic() + left if left > 0 else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Alarm):
            return NotImplemented
        if self.at is None or other.at is None:
            return self.at is other.at
        return abs(self.at - other.at) < 0.5  # as read, some microseconds later


def _to_alarm(alarm: _Alarm) -> None:
    left = 0.0 if alarm.at is None else max(alarm.at - time.monotonic(), 0.001)
    signal.setitimer(signal.ITIMER_REAL, left, alarm.interval)


def _launcher() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(_LAUNCHER)}


def _to_launcher(variables: dict[str, str]) -> None:
    for name in _launcher().keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def _streams() -> tuple[Any, Any]:
    return sys.stdout, sys.stderr


def _to_streams(streams: tuple[Any, Any]) -> None:
    sys.stdout, sys.stderr = streams


def _logging() -> tuple[Any, ...]:
    """(disabled level, root's level, root's handlers, the package's disabled loggers)."""
    loggers = logging.root.manager.loggerDict
    off = {name for name, one in loggers.items() if getattr(one, "disabled", False)}
    ours = frozenset(name for name in off if name.startswith("adrpo_scale"))
    return logging.root.manager.disable, logging.root.level, tuple(logging.root.handlers), ours


def _to_logging(state: tuple[Any, ...]) -> None:
    disabled, level, handlers, off = state
    logging.disable(disabled)
    logging.root.setLevel(level)
    added = [one for one in logging.root.handlers if one not in handlers]
    logging.root.handlers[:] = [*handlers, *added]
    for name in _logging()[3] - off:
        logging.getLogger(name).disabled = False


def _torch_modes() -> dict[str, Any]:
    cudnn = torch.backends.cudnn
    return {
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.get_deterministic_debug_mode(),
        "autocast": tuple(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic),
    }


def _to_torch_modes(before: dict[str, Any]) -> None:
    now = _torch_modes()
    changed = {name for name, value in before.items() if now[name] != value}
    if "grad" in changed:
        torch.set_grad_enabled(before["grad"])
    if "dtype" in changed:
        torch.set_default_dtype(before["dtype"])
    if "device" in changed:
        # None takes the mode away that a device sets; with "cpu" it would cost time at every call.
        torch.set_default_device(None if before["device"].type == "cpu" else before["device"])
    if "threads" in changed:
        torch.set_num_threads(before["threads"])
    if "precision" in changed:
        torch.set_float32_matmul_precision(before["precision"])
    if "deterministic" in changed:
        torch.set_deterministic_debug_mode(before["deterministic"])
    for kind, is_on in zip(("cpu", "cuda"), before["autocast"], strict=True):
        torch.set_autocast_enabled(kind, is_on)
    cudnn = torch.backends.cudnn
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic = before["cudnn"]


PROCESS = (
    Fact("the working directory", _folder, _to_folder),
    Fact("the umask", _umask, _to_umask),
    Fact("handlers of signals", _handlers, _to_handlers),
    Fact("the alarm", _Alarm, _to_alarm),
    Fact("sys.stdout or sys.stderr", _streams, _to_streams),
)
"""What no code may change for all others, also not while it is imported."""

FACTS = (
    *PROCESS,
    Fact("variables of the launcher", _launcher, _to_launcher),
    Fact("handlers or levels of logging", _logging, _to_logging),
    Fact("modes of torch", _torch_modes, _to_torch_modes),
    Fact("numpy's handling of errors", np.geterr, lambda before: np.seterr(**before)),
    Fact("garbage collection", gc.isenabled, lambda is_on: gc.enable() if is_on else gc.disable()),
)


@contextmanager
def kept(who: str, facts: Sequence[Fact] = FACTS) -> Iterator[None]:
    """Puts the state back after the block, and warns once of each part that changed; the block
    cannot end the process (`exits`). who: whose code runs inside, for the warning."""
    before = [fact.read() for fact in facts]
    try:
        with no_exit():
            yield
    finally:
        changed = [(f, v) for f, v in zip(facts, before, strict=True) if f.read() != v]
        for fact, value in changed:
            fact.write(value)
        for name in [fact.name for fact, _ in changed if (who, fact.name) not in _told]:
            _told.add((who, name))  # only now: the logging may have been changed
            log.warning("%s changed %s, which is as before again", who, name)
