"""One writer per run folder: `lock.json`, made by an exclusive create, with its owner's heartbeat.

flock is not used: shared filesystems drop it, or keep it after its owner's node has died. An owner
counts as dead by the first of these rules that applies:

    it is the same Slurm job, in an earlier start    Slurm never runs a job twice at a time
    it is on this machine, and its process has ended
    it had no heartbeat for `expiry_seconds`         by the file server's clock, or by our own watch

Any other owner is watched until it shows a heartbeat (it is alive, and the folder is refused) or
has been silent for too long. An owner that was only suspended learns of its loss at its next
`check`, which every writer calls before it writes: the process runs on as if no time had passed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.lock_file import Seen, create, look, renew, touch, write_new
from adrpo_scale.core.lock_owner import (
    Owner,
    has_ended,
    process_facts,
    this_machine,
    this_process,
)

log = logging.getLogger(__name__)

LOCK = "lock.json"
_MOMENT = 0.02  # seconds between looks at something that takes another process milliseconds


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
        self._is_lost = False  # once lost, for good: the next owner may have removed its lock
        self._confirmed = 0.0  # when it was last seen to be ours
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def acquire(self) -> bytes:
        """Takes the folder, now or when its owner has been silent for `expiry_seconds`. Returns
        what the other ranks give to `join`.

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
        self._stop = threading.Event()
        self.join(content)
        self._thread = threading.Thread(target=self._keep_alive, name="heartbeat", daemon=True)
        self._thread.start()
        return content

    def join(self, content: bytes) -> None:
        """Makes `check` answer for the lock of `content`, which another rank of this job holds."""
        self._content, self._is_lost, self._confirmed = content, False, _now()

    def release(self) -> None:
        """Removes the lock if it is still ours. A disk error is only logged: the next owner sees
        that this process has ended."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join(timeout=5)  # it may hang on a file server that does not answer
        content, self._content, self._thread = self._content, b"", None
        try:
            seen = look(self.path)
            if seen is not None and seen.content == content:
                self._remove(seen)
        except OSError as error:
            log.warning("%s could not be removed (%s); it expires by itself", self.path, error)

    def check(self) -> None:
        """Raises RunFolderError unless the lock is still ours. Call it before every write: a
        process that was silent for too long may have been replaced, and must not write."""
        try:
            self._check()
        except RunFolderError:
            self._is_lost = True
            raise

    def _check(self) -> None:
        seen, trouble, is_silent = None, "it is gone: somebody deleted it", False
        for pause in (0.0, 0.1, 0.3, 1.0):  # a short failure of the file server must end no run
            time.sleep(pause)
            try:
                seen, is_silent = look(self.path), False
            except OSError as error:
                trouble, is_silent = f"it cannot be read: {error}", True
            if seen is not None or self._is_lost:
                break
        if is_silent and not self._is_lost and _now() - self._confirmed < self._expiry / 2:
            log.warning("%s cannot be read; nobody may have taken it yet", self.path)
            return
        if seen is None:
            raise RunFolderError(
                f"{self.path} is no longer ours ({trouble}). Nothing more is written, because "
                "another process may have begun here; start again to resume from the last "
                "checkpoint"
            )
        if seen.content != self._content or self._is_lost:
            raise RunFolderError(
                f"{self.path.parent} was taken over by another process ({seen.owner}): this one "
                f"had no heartbeat for {self._expiry:g} s, or its job was requeued. Nothing "
                "more is written here; if processes are suspended this long, raise "
                "checkpoint.lock_expiry_seconds"
            )
        self._confirmed = _now()

    @contextmanager
    def _private_file(self, content: bytes) -> Iterator[Path]:
        """Our lock under a name of its own, before it becomes the lock."""
        private = self.path.with_name(f"{LOCK}.{self._me.token}")
        write_new(private, content)
        try:
            yield private
        finally:
            with suppress(OSError):
                private.unlink()

    def _compete(self, private: Path) -> None:
        """Returns when the lock is ours; raises RunFolderError when another process is alive."""
        begin = since = time.monotonic()
        first: Seen | None = None  # the lock that is being watched, as it was at `since`
        while not create(self.path, private):
            seen, now = look(self.path), time.monotonic()
            if seen is None:
                self._check_patience(now - begin)
                time.sleep(_MOMENT)
                continue
            age = (touch(private) - seen.modified) / 1e9
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

    def _take_over(self, dead: Seen, private: Path, reason: str) -> None:
        """Removes a dead owner's lock, or lets another process do it.

        Several processes may judge the same lock dead. Without the claim, the slower one would move
        away the lock that the faster one has made since, and a third could create its own.
        """
        digest = hashlib.sha256(dead.content).hexdigest()[:32]
        claim = self.path.with_name(f"{LOCK}.{digest}.claim")
        if not create(claim, private):
            other = look(claim)
            if other is not None and touch(private) - other.modified > self._expiry * 1e9:
                claim.unlink(missing_ok=True)  # of a process that was killed at the next line
            time.sleep(_MOMENT)
            return
        try:
            if self._remove(dead):
                log.warning("%s taken over from %s: %s", self.path.parent, dead.owner, reason)
        finally:
            claim.unlink(missing_ok=True)

    def _remove(self, expected: Seen) -> bool:
        """Removes the lock if it is exactly the expected one; any other is put back as it was."""
        if look(self.path) != expected:
            return False
        aside = self.path.with_name(f"{LOCK}.{self._me.token}.aside")
        with suppress(FileNotFoundError):  # also where the answer to the rename was lost
            os.rename(self.path, aside)
        found = look(aside)
        if found is not None and found != expected:
            create(self.path, aside)
        aside.unlink(missing_ok=True)
        return found == expected

    def _keep_alive(self) -> None:
        """The heartbeat's thread. Failures of the file server are logged and do not end it."""
        stop, content = self._stop, self._content
        while not stop.wait(self._beat):
            try:
                if not renew(self.path, content):
                    self._is_lost = True
                    log.warning("%s was taken over by another process", self.path.parent)
                    return  # `check` stops us before anything is written
                self._confirmed = _now()
            except OSError as error:
                log.warning("no heartbeat could be written to %s: %s", self.path, error)


def _now() -> float:
    """Seconds that also pass while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def holder_of(run: Path) -> tuple[Owner, float, bool] | None:
    """(owner, seconds since its heartbeat by this machine's clock, whether its process is known to
    have ended) of a run folder; None where no process holds it. Writes nothing."""
    seen = look(run / LOCK)
    if seen is None:
        return None
    owner = seen.owner
    is_here = owner.machine is not None and owner.machine == this_machine()
    return owner, time.time() - seen.modified / 1e9, is_here and has_ended(owner)
