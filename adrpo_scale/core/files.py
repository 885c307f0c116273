"""File operations that a power cut, a full disk or a kill in their middle cannot turn into half a
result. Everything a checkpoint does to the disk goes through here, as plain calls of `os`.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_DEEPEST = 64  # folders in folders that are removed; a checkpoint or an export has a handful


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Writes all of `data`; `os.write` may stop early, and does near a limit of the disk."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def open_new(path: Path) -> int:
    """A descriptor of a new file. Raises FileExistsError where anything has its name, also a link:
    in a folder that others can write, a planted one would lead the data elsewhere."""
    return os.open(path, _NEW, 0o644)


def open_regular(path: Path) -> BinaryIO:
    """A regular file to read, through links. Raises OSError for anything else, without waiting:
    opening a FIFO would wait for a writer, and a device has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def own(path: str | Path, flags: int) -> int:
    """Opens a file that is continued or written again in its place; an `opener` of `open`. Raises
    OSError for a link and for anything but a regular file, without waiting."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "it is a link, expected a file", str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def write_new(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Writes a new file, as `open_new`. durable: waits until it is on the disk."""
    descriptor = open_new(path)
    try:
        write_all(descriptor, data)
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    write_new(path, data, durable=True)


def temporary_beside(path: Path) -> Path:
    """A name beside `path` that nobody can foresee, for what is renamed to `path` once whole."""
    return path.with_name(f"{path.name}.{os.urandom(8).hex()}.tmp")


def replace_file(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Puts `data` at `path` in one step: readers see the old file or the new one, whole. A link at
    `path` is replaced, not followed. durable: False for what can be computed again."""
    temporary = temporary_beside(path)
    try:
        write_new(temporary, data, durable=durable)
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(path.parent)


def replace_json(path: Path, value: Any) -> None:
    """Puts `value` at `path` as indented JSON, in one step. Raises ValueError for nan and inf."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: a file's own fsync does not cover them."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until a file that other code has written is on the disk."""
    sync_folder(path)  # the same calls: open, fsync, close


def remove_folder(folder: Path) -> None:
    """Removes what stands at a path: a folder with all that it holds; of a link, a file, a FIFO or
    a device the name alone. No link is followed, at the path or below it, also where one takes a
    folder's place meanwhile.

    A name that is gone already is no error: a removal may have been cut short, or a shared
    filesystem may list a name that it no longer has.
    """
    try:
        parent = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        _remove(folder.name, parent, folder)
    finally:
        os.close(parent)


def _remove(name: str, parent: int, path: Path, depth: int = 0) -> None:
    """path: of `name`, for errors."""
    try:
        folder = os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
        return
    try:
        if depth == _DEEPEST:
            raise OSError(errno.ENAMETOOLONG, "too many folders in folders", str(path))
        for inner in sorted(os.listdir(folder)):
            _remove(inner, folder, path / inner, depth + 1)
    finally:
        os.close(folder)
    with suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
