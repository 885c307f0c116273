"""Host memory that this process may still take: of the machine, and of the job's share of it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_GROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def free_host_memory() -> int | None:
    """Bytes; None where the system does not say. Pages of files that can be given up are free."""
    found = [_of_machine(), *map(_of_group, _groups())]
    return min((free for free in found if free is not None), default=None)


def _of_machine() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        lines = _MACHINE.read_text().splitlines()
        return next(
            (int(one.split()[1]) << 10 for one in lines if one[:13] == "MemAvailable:"), None
        )
    return None


def _groups() -> list[Path]:
    """The folders of this process's control group and of those above it, of version 2."""
    with suppress(OSError):
        for line in _GROUP.read_text().splitlines():
            if line.startswith("0::"):
                place = _GROUPS / line[3:].lstrip("/")
                return [place, *(p for p in place.parents if p.is_relative_to(_GROUPS))]
    return []


def _of_group(folder: Path) -> int | None:
    with suppress(OSError, ValueError):
        limit = int((folder / "memory.max").read_text())  # ValueError for "max"
        used = int((folder / "memory.current").read_text())
        stated = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stated.get("inactive_file", 0)))
    return None
