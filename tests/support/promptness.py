"""How soon a failing rank says so and leaves, in a form that load on the machine cannot change.

Seconds of a wall clock grow with whatever else runs. What makes a message late on a quiet machine
is work, which costs this process's own processor seconds, or waiting, which is a call of something
that waits: between the fault and its message there must be neither. What makes an end late is a
timeout: where every timeout is longer than the test may take, a rank that ends has not waited for
one.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from adrpo_scale.core import failure
from tests.support.faults import RaiseAt, VanishAt

TOLD, GONE = 5.0, 90.0  # processor seconds from the fault to the message, and to the end
NO_TIMEOUTS = ["engine.timeout_seconds=3600", "limits.hang_seconds=3000"]
_ASKED = {"rank", "size", "name", "group_name"}  # of a process group, which answers by itself
_WAITING = {
    "threading.py": {"join", "wait", "wait_for"},
    "subprocess.py": {"wait", "communicate", "run"},
    "queue.py": {"get", "put"},
    "_base.py": {"result", "exception", "wait"},
}


class _Notes:
    """This process's events in order, with its processor seconds, written at its end."""

    def __init__(self, file: Path) -> None:
        self._file, self._events, self._waits = file, [], []

    def add(self, what: str) -> None:
        self._events.append((what, time.process_time()))

    def watch(self) -> None:
        sys.setprofile(self._seen)

    def told(self) -> None:
        sys.setprofile(None)
        self.add("told")

    def write(self) -> None:
        self.add("left")
        self._file.write_text(json.dumps({"events": self._events, "waits": self._waits}))

    def _seen(self, frame: FrameType, event: str, what: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code.co_name in _WAITING.get(Path(code.co_filename).name, ()):
                caller = frame.f_back.f_code.co_qualname if frame.f_back else ""
                self._waits.append(f"{caller} → {code.co_filename}: {code.co_name}")
        elif event == "c_call":
            kind = type(getattr(what, "__self__", None)).__name__
            is_torchs = kind.startswith(("pybind11_", "PyCapsule")) and what.__name__ not in _ASKED
            if is_torchs or what is time.sleep:
                self._waits.append(f"{frame.f_code.co_filename}: {what.__name__}")


def _noted(rank: int, folder: Path) -> _Notes:
    """Notes of this rank, for `facts`."""
    notes, tell, leave = _Notes(folder / f"notes-{rank}.json"), failure.tell, failure.leave

    def told(error: BaseException) -> None:
        tell(error)
        notes.told()

    def left(code: int) -> Any:
        notes.write()
        leave(code)

    failure.tell, failure.leave = told, left  # type: ignore[assignment]
    return notes


@dataclass
class NotedRaise(RaiseAt):
    """RaiseAt, with notes of every rank in `folder`."""

    folder: Path

    def __call__(self, rank: int) -> None:
        super().__call__(rank)
        self._notes = _noted(rank, self.folder)

    def _fail(self) -> None:
        self._notes.add("fault")
        self._notes.watch()
        super()._fail()


@dataclass
class NotedVanish(VanishAt):
    """VanishAt, with notes of every rank that does not vanish in `folder`."""

    folder: Path

    def __call__(self, rank: int) -> None:
        super().__call__(rank)
        _noted(rank, self.folder)


def check_prompt(folder: Path, rank: int, *, is_at_fault: bool) -> None:
    """The rank said what happened before it waited for anything, and ended by itself."""
    facts = json.loads((folder / f"notes-{rank}.json").read_text())
    events: dict[str, float] = {}
    for what, seconds in facts["events"]:
        events.setdefault(what, seconds)
    assert [*events] == (["fault"] if is_at_fault else []) + ["told", "left"], facts
    assert facts["waits"] == [], facts["waits"]
    since = events["fault" if is_at_fault else "told"]
    assert events["told"] - since < TOLD and events["left"] - since < GONE, facts
