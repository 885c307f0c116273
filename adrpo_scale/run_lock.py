"""One writer per run folder: a lock file made by an exclusive create, with its owner's heartbeat.

No flock: shared filesystems do not keep it, or keep it after its owner's node has died. A dead
owner is found by what can be known of it, in this order:

    the same Slurm job with another restart count    Slurm never runs a job twice at a time
    this machine, and its process is gone
    no heartbeat for `expiry_seconds`                by the file server's clock alone

Any other is watched until it shows a heartbeat (then it is alive, and we are refused) or expires.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from adrpo_scale.errors import RunFolderError

log = logging.getLogger(__name__)

LOCK = "lock.json"


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder. machine: boot and process namespace, within which `pid` means
    something; process_start: in clock ticks since boot, because pids are used again."""

    token: str = ""
    job_id: str | None = None
    restart_count: str | None = None
    host: str = "?"
    pid: int = -1
    process_start: str = ""
    machine: str = ""
    since: str = "?"

    def __str__(self) -> str:
        job = f"job {self.job_id}, " if self.job_id else ""
        return f"{job}host {self.host}, process {self.pid}, since {self.since}"


def this_process(env: Mapping[str, str] = os.environ) -> Owner:
    return Owner(
        token=uuid.uuid4().hex,
        job_id=env.get("SLURM_JOB_ID"),
        restart_count=env.get("SLURM_RESTART_COUNT", "0"),
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()),
        machine=machine(),
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def machine() -> str:
    """This boot of this machine, and the namespace of its process ids; "" where nobody knows."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """When a process began; "" if there is none, or it has ended and was not yet waited for."""
    try:
        # The name in parentheses may hold anything, also spaces and parentheses.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if after_name[0] in "ZX" else after_name[19]


class RunLock:
    """Held by rank 0 alone, from `acquire` to `release`."""

    def __init__(
        self, run: Path, expiry_seconds: float = 120.0, heartbeat_seconds: float = 10.0
    ) -> None:
        self.path = run / LOCK
        self._expiry, self._beat = expiry_seconds, min(heartbeat_seconds, expiry_seconds / 4)
        self._owner = this_process()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Raises RunFolderError if another process is alive in this folder, or on a disk error."""
        try:
            while not self._create():
                self._take_over_or_refuse()
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be written ({error}); choose another --run-dir or set "
                "ADRPO_RUNS"
            ) from error
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Removes the lock if it is still ours."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            if read_owner(self.path).token == self._owner.token:
                self.path.unlink()
        except OSError as error:
            log.warning("%s could not be removed (%s); it expires by itself", self.path, error)

    def check(self) -> None:
        """Raises RunFolderError if another process has taken the folder over: this one was silent
        for too long, and must not commit anything any more."""
        owner = read_owner(self.path)
        if owner.token != self._owner.token:
            raise RunFolderError(
                f"{self.path.parent} was taken over by another process ({owner}) while this one "
                f"gave no sign of life for checkpoint.lock_expiry_seconds = {self._expiry:g}"
            )

    def _create(self) -> bool:
        """The exclusive create: False where there is a lock. Through a link, so that nobody ever
        reads half a lock."""
        private = self.path.with_name(f"{LOCK}.{self._owner.token}")
        private.write_text(json.dumps(asdict(self._owner)) + "\n")
        try:
            os.link(private, self.path)
        except FileExistsError:
            return False
        finally:
            private.unlink()
        return True

    def _take_over_or_refuse(self) -> None:
        """Returns when the lock that was there is gone."""
        begin = _modified(self.path)
        deadline = time.monotonic() + self._expiry + self._beat
        while True:
            owner, beat = read_owner(self.path), _modified(self.path)
            if beat is None:
                return
            age = self._server_now() - beat
            reason = self._why_dead(owner, age)
            if reason or time.monotonic() > deadline:
                return self._take_over(owner, reason or "it gave no sign of life")
            if beat != begin or self._is_here(owner):
                raise RunFolderError(
                    f"{self.path.parent} is in use by {owner} (last sign of life {age:.0f} s ago). "
                    "Wait for it, end it (scancel), or choose another --run-dir"
                )
            time.sleep(min(1.0, self._beat / 2))

    def _why_dead(self, owner: Owner, age: float) -> str | None:
        mine = self._owner
        same_job = owner.job_id is not None and owner.job_id == mine.job_id
        if same_job and owner.restart_count != mine.restart_count:
            return "the job was requeued"
        if self._is_here(owner) and owner.process_start != process_start(owner.pid):
            return "its process is gone"
        if age > self._expiry:
            return f"its last sign of life was {age:.0f} s ago"
        return None

    def _is_here(self, owner: Owner) -> bool:
        """Whether the owner's process id means something on this machine."""
        return bool(owner.machine) and owner.machine == self._owner.machine

    def _take_over(self, owner: Owner, reason: str) -> None:
        """Moves the dead owner's lock away. Of two processes that judge the same lock dead, the
        slower one may find the faster one's in its hands, and puts it back."""
        aside = self.path.with_name(f"{LOCK}.dead-{self._owner.token}")
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return  # another process was faster
        if read_owner(aside).token != owner.token:
            # Where a third one has it by now, the second notices at its next `check`.
            with suppress(FileExistsError):
                os.link(aside, self.path)
        else:
            log.warning("run folder taken over from %s: %s", owner, reason)
        aside.unlink()

    def _server_now(self) -> float:
        """The file server's clock: nodes' clocks differ by more than a heartbeat."""
        probe = self.path.with_name(f"{LOCK}.clock-{self._owner.token}")
        probe.write_bytes(b"")
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _keep_alive(self) -> None:
        while not self._stop.wait(self._beat):
            try:
                if read_owner(self.path).token != self._owner.token:
                    return  # `check` says so before anything is committed
                os.utime(self.path)
            except OSError as error:
                log.warning("no heartbeat could be written: %s", error)  # the next one may


def read_owner(path: Path) -> Owner:
    """What a lock file says; an owner of whom nothing is known where it says nothing readable."""
    try:
        said = json.loads(path.read_text())
        known = {field.name for field in fields(Owner)}
        return Owner(**{name: value for name, value in said.items() if name in known})
    except (OSError, ValueError, AttributeError, TypeError):
        return Owner()


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
