"""One writer per run folder: `lock.json`, made by an exclusive create, with its owner's heartbeat.

flock is not used: shared filesystems drop it, or keep it after its owner's node has died. An owner
counts as dead by the first of these rules that applies:

    it is the same Slurm job, in an earlier start    Slurm never runs a job twice at a time
    it is on this machine, and its process has ended
    it had no heartbeat for `expiry_seconds`         by the file server's clock, or by our own watch

Any other owner is watched until it shows a heartbeat (it is alive, and the folder is refused) or
has been silent for too long. An owner that was only suspended learns of its loss at its next
`check`."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.files import write_all
from adrpo_scale.core.lock_owner import (
    Owner,
    has_ended,
    parse_owner,
    process_facts,
    this_machine,
    this_process,
)

log = logging.getLogger(__name__)

LOCK = "lock.json"
_LARGEST = 65536  # bytes read of a lock; a real one has some hundreds
_MOMENT = 0.02  # seconds between looks at something that takes another process milliseconds
_GONE = (errno.ENOENT, errno.ESTALE)  # ESTALE: on NFS, a file removed after its name was found
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class _Seen:
    """A lock at one moment. content: b"" where it is not readable; modified: in nanoseconds."""

    content: bytes
    modified: int

    @property
    def owner(self) -> Owner:
        return parse_owner(self.content)


def _look(path: Path) -> _Seen | None:
    """Content and time of a lock; None where there is none. The file is opened, because on NFS a
    `stat` alone may be answered by a cache that is up to a minute old."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
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
    """Creates a file that must not exist; removes it again where it cannot be written whole."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def _create(path: Path, source: Path) -> bool:
    """Puts `source` also at `path`, unless something is there: the one step that decides between
    processes. It is a link, so that no process reads half a lock; a copy where the filesystem has
    no links."""
    content = source.read_bytes()
    try:
        try:
            os.link(source, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_new(path, content)
    except FileExistsError:
        # Also the answer to a link that was made, where the file server's first answer was lost.
        seen = _look(path)
        return seen is not None and seen.content == content
    return True


class RunLock:
    """Held by rank 0 alone, from `acquire` to `release` or inside a `with` block.

    expiry_seconds: silence after which an owner counts as dead. heartbeat_seconds: between
    heartbeats; lowered to a quarter of the expiry, so that a late heartbeat costs no owner its
    lock.
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
        """Removes the lock if it is still ours. A disk error is only logged: the next owner sees
        that this process has ended."""
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
        """Raises RunFolderError unless the lock is still ours. Call it before every commit: a
        process that was silent for too long may have been replaced, and must not write."""
        seen, trouble = None, "it is gone: somebody deleted it"
        for pause in (0.0, 0.1, 0.3, 1.0):  # a short failure of the file server must end no run
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
        """Raises RunFolderError for a name that can neither be created nor read for too long."""
        if waited > self._expiry:
            raise RunFolderError(
                f"{self.path} can neither be created nor read (for {waited:.0f} s): is it a link "
                "to nowhere? Remove it if so; otherwise choose another --run-dir"
            )

    def _refusal(self, owner: Owner, age: float) -> RunFolderError:
        return RunFolderError(
            f"{self.path.parent} is in use by {owner}; its last heartbeat was {age:.1f} s ago. "
            f"{owner.remedy}, or choose another --run-dir"
        )

    def _why_dead(self, owner: Owner, silence: float) -> str | None:
        """The reason to count an owner as dead; None where it may be alive. silence: seconds since
        its last heartbeat."""
        if self._is_earlier_start(owner):
            return "the job was requeued"
        if self._is_here(owner) and has_ended(owner):
            return "its process has ended"
        # The owner's settings may differ from ours.
        expiry = max(self._expiry, 3 * (owner.heartbeat_seconds or 0.0))
        return f"its last heartbeat was {silence:.1f} s ago" if silence > expiry else None

    def _is_earlier_start(self, owner: Owner) -> bool:
        me = self._me
        same = (
            owner.job_id is not None and owner.job_id == me.job_id and owner.cluster == me.cluster
        )
        theirs, ours = owner.restart_count or "", me.restart_count or ""
        # Lower, not only different: an earlier start, which a lost node still runs, must not win.
        return same and theirs.isdecimal() and ours.isdecimal() and int(theirs) < int(ours)

    def _is_here(self, owner: Owner) -> bool:
        """Whether the owner's process id means something on this machine."""
        return owner.machine is not None and owner.machine == self._me.machine

    def _is_alive_here(self, owner: Owner, age: float) -> bool:
        """Whether the process table shows, without a wait for a heartbeat, that the owner runs."""
        found = process_facts(owner.pid) if self._is_here(owner) else None
        running = found is not None and found[0] not in "Tt"  # stopped: it may never run again
        return running and age < 2 * (owner.heartbeat_seconds or 0.0)

    def _take_over(self, dead: _Seen, private: Path, reason: str) -> None:
        """Removes a dead owner's lock, or lets another process do it.

        Several processes may judge the same lock dead. Without the claim, the slower one would move
        away the lock that the faster one has made since, and a third could create its own.
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
        with suppress(FileNotFoundError):  # also where the answer to the rename was lost
            os.rename(self.path, aside)
        found = _look(aside)
        if found is not None and found != expected:
            _create(self.path, aside)
        aside.unlink(missing_ok=True)
        return found == expected

    def _keep_alive(self) -> None:
        """The heartbeat's thread. Failures of the file server are logged and do not end it."""
        stop, content = self._stop, self._content
        while not stop.wait(self._beat):
            try:
                if not _renew(self.path, content):
                    log.warning("%s was taken over by another process", self.path.parent)
                    return  # `check` stops us before anything is committed
            except OSError as error:
                log.warning("no heartbeat could be written to %s: %s", self.path, error)


def _touch(path: Path) -> int:
    """Sets a file's time and returns it, in nanoseconds: the file server's clock, since those of
    nodes differ by more than a heartbeat."""
    os.utime(path)
    return os.stat(path).st_mtime_ns


def _renew(path: Path, content: bytes) -> bool:
    """Writes a heartbeat; False where the lock is another's. By descriptor: by name it would renew
    a lock that another process made between the look and the renewal."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if os.read(descriptor, _LARGEST) != content:
            return False
        os.utime(descriptor)
    finally:
        os.close(descriptor)
    return True


def holder_of(run: Path) -> tuple[Owner, float, bool] | None:
    """(owner, seconds since its heartbeat by this machine's clock, whether its process is known to
    have ended) of a run folder; None where no process holds it. Writes nothing."""
    seen = _look(run / LOCK)
    if seen is None:
        return None
    owner = seen.owner
    is_here = owner.machine is not None and owner.machine == this_machine()
    return owner, time.time() - seen.modified / 1e9, is_here and has_ended(owner)
