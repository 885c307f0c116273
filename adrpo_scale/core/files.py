"""File operations that a power cut, a full disk or a kill in their middle cannot turn into half a
result. Everything a checkpoint does to the disk goes through here, as plain calls of `os`.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


def write_all(descriptor: int, data: memoryview | bytes) -> None:
    """Writes all of `data`; `os.write` may stop early, and does near a limit of the disk."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Puts `data` at `path` in one step: readers see the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".tmp")
    write_durably(temporary, data)
    os.rename(temporary, path)
    sync_folder(path.parent)


def replace_json(path: Path, value: Any) -> None:
    """Puts `value` at `path` as indented JSON, in one step. Raises ValueError for nan and inf."""
    replace_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk: a file's own fsync does not cover them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Waits until a file that other code has written is on the disk."""
    sync_folder(path)  # the same calls: open, fsync, close


def remove_folder(folder: Path) -> None:
    """Removes a folder with its files and folders. A name that is gone already is no error: a
    removal may have been cut short, or a shared filesystem may list a name that it no longer has.
    """
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.rmdir(folder)
