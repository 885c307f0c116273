"""One writer per run folder: `lock.json`, made by an exclusive create, with its owner's heartbeat.

No flock: shared filesystems do not keep it, or keep it after its owner's node has died. Whether an
owner is dead is found by what can be known of it, in this order:

    the same Slurm job, in an earlier start          Slurm never runs a job twice at a time
    this machine, and its process has ended
    no heartbeat for `expiry_seconds`                by the file server's clock, or by our own watch

Any other owner is watched until it shows a heartbeat (then it is alive and we are refused) or has
been silent for too long. An owner that was only suspended finds out at its next `check`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from adrpo_scale.core.errors import RunFolderError

log = logging.getLogger(__name__)

LOCK = "lock.json"
_LARGEST = 65536  # bytes read of a lock; a real one has some hundreds
_MOMENT = 0.02  # seconds between looks at something that takes another process milliseconds
_GONE = (errno.ENOENT, errno.ESTALE)  # ESTALE: NFS for a file that was there when we looked it up
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Owner:
    """Who holds a run folder; None: not known.

    process_start: in clock ticks since boot, because process ids are used again. machine: the boot
    and the namespace within which `pid` means something.
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
        return ", ".join(known) or "an owner of whom nothing is known"

    @property
    def remedy(self) -> str:
        if self.job_id is not None:
            return f"Stop that job first (scancel {self.job_id})"
        if self.pid is not None:
            return f"Stop that process first (kill {self.pid} on {self.host})"
        return "Find what writes there and stop it"


_KINDS: dict[str, type] = {field.name: str for field in fields(Owner)} | {
    "pid": int,
    "process_start": int,
    "heartbeat_seconds": float,
}


@dataclass(frozen=True)
class _Seen:
    """A lock at one moment. content: b"" where it may not be read; modified: nanoseconds."""

    content: bytes
    modified: int

    @property
    def owner(self) -> Owner:
        return parse_owner(self.content)


def this_process(heartbeat_seconds: float, env: Mapping[str, str] = os.environ) -> Owner:
    """This process as an owner, with a token of its own."""
    found = _process(os.getpid())
    return Owner(
        token=uuid.uuid4().hex,
        cluster=env.get("SLURM_CLUSTER_NAME"),
        job_id=env.get("SLURM_JOB_ID"),  # of an array's task its own, not the array's
        restart_count=env.get("SLURM_RESTART_COUNT") or "0",
        host=socket.gethostname(),
        pid=os.getpid(),
        process_start=found[1] if found else None,
        machine=_machine(),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        heartbeat_seconds=heartbeat_seconds,
    )


def parse_owner(content: bytes) -> Owner:
    """The owner that a lock names. Of an empty, damaged or foreign file nothing is known."""
    try:
        stated = json.loads(content)
    except ValueError:
        return Owner()
    if not isinstance(stated, dict):
        return Owner()
    known = {name: stated[name] for name, kind in _KINDS.items() if type(stated.get(name)) is kind}
    return Owner(**known)


def _machine() -> str | None:
    """This boot of this machine and the namespace of its process ids; None where nobody knows."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process(pid: int | None) -> tuple[str, int] | None:
    """(state, start) of a process of this machine; None where that cannot be read."""
    try:
        # The name in parentheses may hold anything, also spaces and parentheses.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return after_name[0], int(after_name[19])


def _has_ended(owner: Owner) -> bool:
    """Whether an owner's process, on this machine, is certainly no more."""
    pid = owner.pid or 0
    if not 0 < pid < 2**31:
        return False  # 0 and -1 would ask about other processes
    found = _process(pid)
    if found is not None:
        state, start = found
        return state in "ZX" or owner.process_start not in (None, start)
    try:
        os.kill(pid, 0)  # /proc may hide other users' processes
    except OSError as error:
        return error.errno == errno.ESRCH
    return False


def _look(path: Path) -> _Seen | None:
    """Content and time of a lock; None where there is none. Opened, not only asked for its time: on
    NFS that makes the client ask the server, instead of a cache that is up to a minute old."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return _Seen(b"", os.stat(path).st_mtime_ns)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        return _Seen(os.read(descriptor, _LARGEST), os.fstat(descriptor).st_mtime_ns)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    finally:
        os.close(descriptor)


def _write_new(path: Path, content: bytes) -> None:
    """Makes a file that must not exist; half a file is not left behind."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        while content:  # near a limit of the disk `os.write` may stop early
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _create(path: Path, source: Path) -> bool:
    """Puts `source` at `path` too, unless something is there: the one step that decides between
    processes. By a link, so that nobody reads half a lock; where there are no links, as a copy."""
    content = source.read_bytes()
    try:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_new(path, content)
    except FileExistsError:
        # Also the answer to a link that was made, when a file server's first answer got lost.
        seen = _look(path)
        return seen is not None and seen.content == content
    return True


class RunLock:
    """Held by rank 0 alone, from `acquire` to `release` or inside a `with` block.

    expiry_seconds: silence after which an owner counts as dead. heartbeat_seconds: between
    heartbeats; at most a quarter of the expiry, so that one that comes late kills nobody.
    """

    def __init__(
        self, run: Path, expiry_seconds: float = 120.0, heartbeat_seconds: float = 10.0
    ) -> None:
        self.path = run / LOCK
        self._expiry, self._beat = expiry_seconds, float(min(heartbeat_seconds, expiry_seconds / 4))
        self._me = this_process(self._beat)
        self._content = b""  # of our lock; b"" while we hold none
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the folder, now or when its owner has been silent for `expiry_seconds`.

        Raises RunFolderError if another process is alive in it, or the folder cannot be written.
        """
        content = (json.dumps(asdict(self._me), indent=2) + "\n").encode()
        try:
            with self._private_file(content) as private:
                self._compete(private)
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be written ({error}). Make room if the disk or a quota is "
                "full; otherwise choose another --run-dir or set ADRPO_RUNS"
            ) from error
        self._content, self._stop = content, threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Removes the lock if it is still ours. A disk error is only logged: nothing is lost by it,
        the next owner finds that this process has ended."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=5)  # it may hang on a file server that does not answer
        content, self._content, self._thread = self._content, b"", None
        try:
            seen = _look(self.path)
            if seen is not None and seen.content == content:
                self._remove(seen)
        except OSError as error:
            log.warning("%s could not be removed (%s); it expires by itself", self.path, error)

    def check(self) -> None:
        """Raises RunFolderError unless the lock is still ours. To be called before anything is
        committed: whoever was silent for too long may have been replaced, and must not write."""
        seen, trouble = None, "it is gone: somebody deleted it"
        for pause in (0.0, 0.1, 0.3, 1.0):  # a file server's hiccup is not the end of a run
            time.sleep(pause)
            try:
                seen = _look(self.path)
            except OSError as error:
                trouble = f"it cannot be read: {error}"
            if seen is not None:
                break
        if seen is None:
            raise RunFolderError(
                f"{self.path} is no longer ours ({trouble}). Nothing more is written, because "
                "another process may have begun here; start again to resume from the last "
                "checkpoint"
            )
        if seen.content != self._content:
            raise RunFolderError(
                f"{self.path.parent} was taken over by another process ({seen.owner}): this one "
                f"had no heartbeat for {self._expiry:g} s, or its job was requeued. Nothing "
                "more is written here; if processes are suspended this long, raise "
                "checkpoint.lock_expiry_seconds"
            )

    @contextmanager
    def _private_file(self, content: bytes) -> Iterator[Path]:
        """Our lock under a name of its own, before it becomes the lock."""
        private = self.path.with_name(f"{LOCK}.{self._me.token}")
        _write_new(private, content)
        try:
            yield private
        finally:
            with suppress(OSError):
                private.unlink()

    def _compete(self, private: Path) -> None:
        """Returns when the lock is ours; raises RunFolderError when another process is alive."""
        begin = since = time.monotonic()
        first: _Seen | None = None  # the lock that is being watched, as it was at `since`
        while not _create(self.path, private):
            seen, now = _look(self.path), time.monotonic()
            if seen is None:
                self._check_patience(now - begin)
                time.sleep(_MOMENT)
                continue
            age = (_touch(private) - seen.modified) / 1e9
            is_new = first is None or seen.content != first.content
            if is_new:
                first, since = seen, now
            has_moved = seen != first
            reason = self._why_dead(seen.owner, age if has_moved else max(age, now - since))
            if reason is not None:
                self._take_over(seen, private, reason)
            elif has_moved or self._is_alive_here(seen.owner, age):
                raise self._refusal(seen.owner, age)
            else:
                if is_new:
                    log.warning("waiting to see whether %s is alive", seen.owner)
                time.sleep(min(0.5, self._beat))

    def _check_patience(self, waited: float) -> None:
        """A name that can neither be made nor read does not become a lock by waiting."""
        if waited > self._expiry:
            raise RunFolderError(
                f"{self.path} can neither be made nor read (for {waited:.0f} s): is it a link to "
                "nowhere? Remove it if so; otherwise choose another --run-dir"
            )

    def _refusal(self, owner: Owner, age: float) -> RunFolderError:
        return RunFolderError(
            f"{self.path.parent} is in use by {owner}; its last heartbeat was {age:.1f} s ago. "
            f"{owner.remedy}, or choose another --run-dir"
        )

    def _why_dead(self, owner: Owner, silence: float) -> str | None:
        """silence: seconds since the last heartbeat. None where the owner may be alive."""
        if self._is_earlier_start(owner):
            return "the job was requeued"
        if self._is_here(owner) and _has_ended(owner):
            return "its process has ended"
        # It may run with other settings than we do.
        expiry = max(self._expiry, 3 * (owner.heartbeat_seconds or 0.0))
        return f"its last heartbeat was {silence:.1f} s ago" if silence > expiry else None

    def _is_earlier_start(self, owner: Owner) -> bool:
        me = self._me
        same = (
            owner.job_id is not None and owner.job_id == me.job_id and owner.cluster == me.cluster
        )
        theirs, ours = owner.restart_count or "", me.restart_count or ""
        # Lower, not only other: what a lost node still runs of an earlier start must not come back.
        return same and theirs.isdecimal() and ours.isdecimal() and int(theirs) < int(ours)

    def _is_here(self, owner: Owner) -> bool:
        """Whether the owner's process id means something on this machine."""
        return owner.machine is not None and owner.machine == self._me.machine

    def _is_alive_here(self, owner: Owner, age: float) -> bool:
        """Whether the process table says what watching would only say later."""
        found = _process(owner.pid) if self._is_here(owner) else None
        running = found is not None and found[0] not in "Tt"  # stopped: it may never run again
        return running and age < 2 * (owner.heartbeat_seconds or 0.0)

    def _take_over(self, dead: _Seen, private: Path, reason: str) -> None:
        """Removes a dead owner's lock, or lets another process do it.

        Several may judge the same lock dead. Without the claim, the slower would move away what the
        faster has made in the meantime, and in that gap a third could make its own.
        """
        digest = hashlib.sha256(dead.content).hexdigest()[:32]
        claim = self.path.with_name(f"{LOCK}.{digest}.claim")
        if not _create(claim, private):
            other = _look(claim)
            if other is not None and _touch(private) - other.modified > self._expiry * 1e9:
                claim.unlink(missing_ok=True)  # of a process that was killed at the next line
            time.sleep(_MOMENT)
            return
        try:
            if self._remove(dead):
                log.warning("%s taken over from %s: %s", self.path.parent, dead.owner, reason)
        finally:
            claim.unlink(missing_ok=True)

    def _remove(self, expected: _Seen) -> bool:
        """Removes the lock if it is exactly the expected one; any other is put back as it was."""
        if _look(self.path) != expected:
            return False
        aside = self.path.with_name(f"{LOCK}.{self._me.token}.aside")
        with suppress(FileNotFoundError):  # or the answer to a rename that was made
            os.rename(self.path, aside)
        found = _look(aside)
        if found is not None and found != expected:
            _create(self.path, aside)
        aside.unlink(missing_ok=True)
        return found == expected

    def _keep_alive(self) -> None:
        """The heartbeat's thread. It outlives what a file server does now and then."""
        stop, content = self._stop, self._content
        while not stop.wait(self._beat):
            try:
                if not _renew(self.path, content):
                    log.warning("%s was taken over by another process", self.path.parent)
                    return  # `check` stops us before anything is committed
            except OSError as error:
                log.warning("no heartbeat could be written to %s: %s", self.path, error)


def _touch(path: Path) -> int:
    """The file server's clock, in nanoseconds: nodes' clocks differ by more than a heartbeat."""
    os.utime(path)
    return os.stat(path).st_mtime_ns


def _renew(path: Path, content: bytes) -> bool:
    """A heartbeat, unless the lock is another's. By descriptor: by name it would renew the lock of
    whoever came between the look and the renewal."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if os.read(descriptor, _LARGEST) != content:
            return False
        os.utime(descriptor)
    finally:
        os.close(descriptor)
    return True


def holder_of(run: Path) -> tuple[Owner, float, bool] | None:
    """For onlookers, who write nothing: (owner, seconds since its heartbeat by this machine's
    clock, whether its process is known to have ended). None: nobody holds the folder."""
    seen = _look(run / LOCK)
    if seen is None:
        return None
    owner = seen.owner
    is_here = owner.machine is not None and owner.machine == _machine()
    return owner, time.time() - seen.modified / 1e9, is_here and _has_ended(owner)
