"""What happened on the pretended device: faults, host syncs, copies, collectives, operators."""

from __future__ import annotations

import collections
import sys
from types import FrameType
from typing import Any

PACKAGE = "/adrpo_scale/"
LIBRARIES = ("/transformers/", "/diffusers/", "/peft/", "/deepspeed/", "/torch/distributed/")
LIBRARIES += ("/torch/optim/", "/torch/nn/utils/", "/torch/utils/checkpoint")


class Fault(RuntimeError):
    """What a CUDA device, or NCCL, would have refused or answered wrongly."""


class Seen:
    """Counters by (what, where); `problems` has every fault, also of what caught the exception."""

    def __init__(self) -> None:
        self.syncs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.copies: collections.Counter[tuple[str, str]] = collections.Counter()
        self.collectives: collections.Counter[tuple[str, str, str]] = collections.Counter()
        self.over_gloo: collections.Counter[tuple[str, str]] = collections.Counter()
        self.operators: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def problem(self, text: str) -> None:
        """Records a fault and raises it."""
        line = f"pretended CUDA: {text} @ {where()}"
        if line not in self.problems:
            self.problems.append(line)
        raise Fault(line)

    def sync(self, what: str) -> None:
        """The host waits for the device."""
        self.syncs[what, where()] += 1

    def copied(self, what: str) -> None:
        self.copies[what, where()] += 1

    def syncs_at(self, *files: str) -> int:
        """Host syncs from a line of one of these files of the package."""
        return sum(n for (_, line), n in self.syncs.items() if any(f in line for f in files))

    def summary(self) -> dict[str, Any]:
        """Picklable: every table as [*key, count], the most frequent first."""
        tables = ("syncs", "copies", "collectives", "over_gloo", "operators")
        return {"problems": self.problems} | {
            name: [
                (*((key,) if isinstance(key, str) else key), count)
                for key, count in getattr(self, name).most_common()
            ]
            for name in tables
        }

    def text(self, most: int = 25) -> str:
        lines = [f"operators on the device: {sum(self.operators.values())}"]
        for title, table in self.summary().items():
            if title in ("problems", "operators"):
                continue
            lines.append(f"{title}: {sum(row[-1] for row in table)}")
            lines += [f"  {row[-1]:7d}  {' | '.join(row[:-1])}" for row in table[:most]]
        lines += [f"PROBLEM {line}" for line in self.problems] or ["problems: none"]
        return "\n".join(lines)


def where() -> str:
    """`library:line < package:line`: the innermost line of this package, and the innermost of the
    library that it called."""
    frame: FrameType | None = sys._getframe(2)
    library = other = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if PACKAGE in name and "/tests/" not in name:
            ours = f"{name.rpartition(PACKAGE)[2]}:{frame.f_lineno}"
            return f"{library} < {ours}" if library else ours
        if not library and any(part in name for part in LIBRARIES):
            library = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        if not other and "/pretend_cuda/" not in name and "/torch/" not in name:
            other = f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return library or other or "?"
