"""The owner of a run folder's lock: the process that it names, and the state of that process."""

from __future__ import annotations

import errno
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

from adrpo_scale.core.json_files import parse_object


@dataclass(frozen=True)
class Owner:
    """The process that holds a run folder; a fact is None where it is not known.

    process_start: in clock ticks since boot, because process ids are used again. machine: the boot
    and the namespace in which `pid` is valid. started: ISO 8601.
    """

    token: str | None = None
    cluster: str | None = None
    job_id: str | None = None
    restart_count: str | None = None
    host: str | None = None
    pid: int | None = None
    process_start: int | None = None
    machine: str | None = None
    started: str | None = None
    heartbeat_seconds: float | None = None

    def __str__(self) -> str:
        facts = {"job": self.job_id, "host": self.host, "process": self.pid, "since": self.started}
        known = (f"{name} {fact}" for name, fact in facts.items() if fact is not None)
        return ", ".join(known) or "an unknown process"

    @property
    def remedy(self) -> str:
        """The way to stop the owner, without the full stop."""
        if self.job_id is not None:
            return f"Stop that job first (scancel {self.job_id})"
        if self.pid is not None:
            return f"Stop that process first (kill {self.pid} on {self.host})"
        return "Find the process that writes there and stop it"


_LONGEST = 256  # characters of a fact
_KINDS: dict[str, type] = {field.name: str for field in fields(Owner)} | {
    "pid": int,
    "process_start": int,
    "heartbeat_seconds": float,
}


def this_process(heartbeat_seconds: float, env: Mapping[str, str] = os.environ) -> Owner:
    """This process as an owner, with a token of its own."""
    found = process_facts(os.getpid())
    return Owner(
        token=uuid.uuid4().hex,
        cluster=env.get("SLURM_CLUSTER_NAME"),
        job_id=env.get("SLURM_JOB_ID"),  # of an array's task its own, not the array's
        restart_count=env.get("SLURM_RESTART_COUNT") or "0",
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=found[1] if found else None,
        machine=this_machine(),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        heartbeat_seconds=heartbeat_seconds,
    )


def parse_owner(content: bytes) -> Owner:
    """The owner that a lock names; without any fact for an empty, damaged or foreign file."""
    try:
        stated = parse_object(content)
    except ValueError:
        return Owner()
    known = {name: stated[name] for name, kind in _KINDS.items() if type(stated.get(name)) is kind}
    return Owner(**{name: fact for name, fact in known.items() if len(str(fact)) <= _LONGEST})


def this_machine() -> str | None:
    """This machine's boot id and namespace of process ids; None where /proc does not state them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def process_facts(pid: int | None) -> tuple[str, int] | None:
    """(state, start in clock ticks since boot) of a process of this machine, from /proc/PID/stat;
    None where that cannot be read."""
    try:
        # The name in parentheses may hold anything, also spaces and parentheses.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return after_name[0], int(after_name[19])


def has_ended(owner: Owner) -> bool:
    """Whether the process of an owner on this machine has certainly ended."""
    pid = owner.pid or 0
    if not 0 < pid < 2**31:
        return False  # 0 and -1 would ask about other processes
    found = process_facts(pid)
    if found is not None:
        state, start = found
        return state in "ZX" or owner.process_start not in (None, start)
    try:
        os.kill(pid, 0)  # /proc may hide other users' processes
    except OSError as error:
        return error.errno == errno.ESRCH
    return False
