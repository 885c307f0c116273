"""Things that go wrong inside a process of a run, on purpose: passed as
`prepare` to `starts.Started`.

Each class is picklable and called with the rank before the command starts.
"""

from __future__ import annotations

import builtins
import errno
import importlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

OPERATIONS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "link", "fdatasync")


@dataclass
class FileOperations:
    """Watches the file operations of one save, that of `step`, and dies at one of them: at number
    `point` on rank `victim`, `before` it, `after` it, or `half` way through a write. Without a
    point every operation is written to `record`-RANK.txt instead."""

    step: str  # e.g. "step-000002"
    victim: int = -1
    point: int = -1
    when: str = "before"
    record: Path | None = None
    _count: int = 0
    _on: bool = False
    _paths: dict[int, str] = field(default_factory=dict)

    def __call__(self, rank: int) -> None:
        self.rank = rank
        store = importlib.import_module("adrpo_scale.checkpoint.store").Store
        real = store._carry_out

        def watched(this: Any, job: Any) -> None:
            self._on = job.folder.name == self.step
            real(this, job)
            self._on = False

        store._carry_out = watched
        for name in OPERATIONS:
            setattr(os, name, partial(self._watched, name, getattr(os, name)))

    def _watched(self, name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        first = args[0]
        path = self._paths.get(first, "") if isinstance(first, int) else str(first)
        if more.get("dir_fd") is not None:
            path = f"{self._paths.get(more['dir_fd'], '')}/{path}"
        if not self._is_watched(path):
            return real(*args, **more)
        number, self._count = self._count, self._count + 1
        if self.record is not None:
            file = f"{self.record}-{self.rank}.txt"
            with open(file, "a") as out:
                out.write(f"{name} {path.partition('/run/')[2]}\n")
        here = self.rank == self.victim and number == self.point
        if here and self.when == "half":
            real(first, memoryview(args[1]).cast("B")[: len(args[1]) // 2])
        if here and self.when in ("before", "half"):
            die()
        try:
            result = real(*args, **more)
        finally:
            if here:
                die()
        if name == "open":
            self._paths[result] = path
        return result

    def _is_watched(self, path: str) -> bool:
        """Those of the threads that save, inside the run's folder."""
        saves = threading.current_thread().name.startswith("checkpoint")
        return self._on and saves and "/run/" in path


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class FailingWrites:
    """Writing a file whose path holds every word of `part` fails with `code` on rank `victim`."""

    part: str
    code: int = errno.EIO
    victim: int = 0
    _paths: dict[int, str] = field(default_factory=dict)

    def __call__(self, rank: int) -> None:
        if rank != self.victim:
            return
        opened, written = os.open, os.write

        def open_(path: Any, *args: Any, **more: Any) -> int:
            descriptor = opened(path, *args, **more)
            self._paths[descriptor] = str(path)
            return descriptor

        def write(descriptor: int, data: Any) -> int:
            path = self._paths.get(descriptor, "")
            if all(word in path for word in self.part.split()):
                raise OSError(self.code, os.strerror(self.code), path)
            return written(descriptor, data)

        os.open, os.write = open_, write  # type: ignore[assignment]


@dataclass
class FailingReads:
    """Hashing a file whose path holds `part` fails with EIO on rank `victim`."""

    part: str
    victim: int = 1

    def __call__(self, rank: int) -> None:
        if rank != self.victim:
            return
        reader = importlib.import_module("adrpo_scale.checkpoint.reader")
        real = reader.file_sha256

        def failing(path: Path, *more: Any) -> str:
            if self.part in str(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, *more)

        reader.file_sha256 = failing  # type: ignore[attr-defined]


@dataclass
class NoSpaceCheck:
    """The check before a save sees nothing, as where another job fills the disk just after it."""

    def __call__(self, rank: int) -> None:
        store = importlib.import_module("adrpo_scale.checkpoint.store")
        store.check_space = lambda *args: None  # type: ignore[attr-defined]


def watch_calls(place: str, before: Callable[[int], None]) -> None:
    """Calls `before` with the number of the call, from 1, ahead of every call of
    `module:Class.function` (or `module:function`)."""
    module, _, path = place.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), itertools.count(1)

    def watched(*args: Any, **more: Any) -> Any:
        before(next(calls))
        return real(*args, **more)

    setattr(owner, name, watched)


@dataclass
class DieAt:
    """SIGKILL of every rank at call number `call` of `place`, once `there` exists: what is written
    in the background has come so far and no further."""

    place: str
    call: int
    there: Path

    def __call__(self, rank: int) -> None:
        watch_calls(self.place, self._before)

    def _before(self, number: int) -> None:
        if number == self.call:
            while not self.there.exists():
                threading.Event().wait(0.005)
            die()


@dataclass
class SignalAt:
    """Sends this process `signals` at call number `call` of `module:Class.function` (or
    `module:function`) on rank `victim`: before the call, in the middle of the loop."""

    place: str
    call: int
    signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    victim: int = 0
    slow: float = 0.0  # seconds added to every call

    def __post_init__(self) -> None:
        assert signal.SIGKILL not in self.signals, "DieAt, which waits for what is being saved"

    def __call__(self, rank: int) -> None:
        watch_calls(self.place, partial(self._before, rank))

    def _before(self, rank: int, number: int) -> None:
        if number == self.call and rank == self.victim:
            for each in self.signals:
                os.kill(os.getpid(), each)
        if self.slow:
            threading.Event().wait(self.slow)


@dataclass
class _FailAt:
    """Fails at call number `call` of `module:Class.function` on rank 1, before the call. The
    teardown of a process group with an exception on its way blocks from then on, as NCCL's does."""

    place: str
    call: int

    def __call__(self, rank: int) -> None:
        _block_teardown()
        if rank == 1:
            watch_calls(self.place, self._before)

    def _before(self, number: int) -> None:
        if number == self.call:
            self._fail()

    def _fail(self) -> None:
        raise NotImplementedError


@dataclass
class RaiseAt(_FailAt):
    """Raises an error of class `kind`, by its name in torch or builtins."""

    kind: str
    message: str

    def _fail(self) -> None:
        kind = getattr(torch, self.kind, None) or getattr(builtins, self.kind)
        raise kind(self.message)


class VanishAt(_FailAt):
    """SIGKILL."""

    def _fail(self) -> None:
        die()


class HangAt(_FailAt):
    """Waits for ever: the others are in a collective that never returns."""

    def _fail(self) -> None:
        threading.Event().wait()


def _block_teardown() -> None:
    """What NCCL's teardown waits for never ends where other ranks have failed."""
    destroy = td.destroy_process_group

    def blocked(*args: Any) -> None:
        if sys.exc_info()[0] is not None:
            threading.Event().wait()
        destroy(*args)

    td.destroy_process_group = blocked
