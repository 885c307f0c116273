"""The file `lock.json` on shared filesystems: made, read, renewed and compared in steps that decide
between processes. See `folder_lock` for who holds it."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.files import write_all
from adrpo_scale.core.lock_owner import Owner, parse_owner

_LARGEST = 65536  # bytes read of a lock; a real one has some hundreds
_GONE = (errno.ENOENT, errno.ESTALE)  # ESTALE: on NFS, a file removed after its name was found
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_WITHOUT_WAITING = os.O_RDONLY | os.O_NONBLOCK  # a FIFO of this name would keep us for ever


@dataclass(frozen=True)
class Seen:
    """A lock at one moment. content: b"" where it is not readable; modified: in nanoseconds."""

    content: bytes
    modified: int

    @property
    def owner(self) -> Owner:
        return parse_owner(self.content)


def look(path: Path) -> Seen | None:
    """Content and time of a lock; None where there is none. The file is opened, because on NFS a
    `stat` alone may be answered by a cache that is up to a minute old."""
    try:
        descriptor = os.open(path, _WITHOUT_WAITING)
    except PermissionError:
        return Seen(b"", os.stat(path).st_mtime_ns)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        return Seen(os.read(descriptor, _LARGEST), os.fstat(descriptor).st_mtime_ns)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    finally:
        os.close(descriptor)


def write_new(path: Path, content: bytes) -> None:
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


def create(path: Path, source: Path) -> bool:
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
            write_new(path, content)
    except FileExistsError:
        # Also the answer to a link that was made, where the file server's first answer was lost.
        seen = look(path)
        return seen is not None and seen.content == content
    return True


def touch(path: Path) -> int:
    """Sets a file's time and returns it, in nanoseconds: the file server's clock, since those of
    nodes differ by more than a heartbeat."""
    os.utime(path)
    return os.stat(path).st_mtime_ns


def renew(path: Path, content: bytes) -> bool:
    """Writes a heartbeat; False where the lock is another's. By descriptor: by name it would renew
    a lock that another process made between the look and the renewal."""
    descriptor = os.open(path, _WITHOUT_WAITING)
    try:
        if os.read(descriptor, _LARGEST) != content:
            return False
        os.utime(descriptor)
    finally:
        os.close(descriptor)
    return True
