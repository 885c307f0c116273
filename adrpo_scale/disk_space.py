"""Whether there is room: by the disk, and by a quota where the site has a command that says it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.errors import ConfigError, DiskSpaceError

QUOTA_SECONDS = 30


@dataclass(frozen=True)
class Space:
    """free_files: None where the filesystem does not count files. source: `disk` or `quota`."""

    free_bytes: int
    free_files: int | None
    source: str


def size_text(count: float) -> str:
    """Bytes as people read them: 1.2 GB (decimal)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} bytes" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def disk_space(folder: Path) -> Space:
    """Room on the filesystem of `folder`, or of its nearest parent that exists."""
    while not folder.exists():
        folder = folder.absolute().parent
    facts = os.statvfs(folder)
    files = facts.f_favail if facts.f_files else None
    return Space(facts.f_bavail * facts.f_frsize, files, "disk")


def quota_space(folder: Path, command: str) -> Space:
    """What `checkpoint.quota_command` says: the shell runs it with ADRPO_RUN_DIR set, and it prints
    the free bytes, or the free bytes and the free number of files. ConfigError if it does not."""
    try:
        done = subprocess.run(
            command,
            shell=True,
            capture_output=True,
            text=True,
            timeout=QUOTA_SECONDS,
            env=os.environ | {"ADRPO_RUN_DIR": str(folder)},
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"checkpoint.quota_command = {command!r} has not answered in {QUOTA_SECONDS} s"
        ) from error
    numbers = done.stdout.split()
    if done.returncode or not 1 <= len(numbers) <= 2 or not all(n.isdigit() for n in numbers):
        raise ConfigError(
            f"checkpoint.quota_command = {command!r} printed {(done.stdout + done.stderr)[:200]!r} "
            f"and exited with {done.returncode}; expected the free bytes, or the free bytes and "
            "the free number of files, as integers"
        )
    return Space(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else None, "quota")


def check_space(
    folder: Path, needed_bytes: int, needed_files: int, quota_command: str | None, what: str
) -> None:
    """Raises DiskSpaceError unless `folder` has room for `what` by the disk and by the quota."""
    spaces = [disk_space(folder)]
    if quota_command is not None:
        spaces.append(quota_space(folder, quota_command))
    for space in spaces:
        if space.free_bytes < needed_bytes:
            lack = f"{size_text(needed_bytes)}, and {size_text(space.free_bytes)} are free"
        elif space.free_files is not None and space.free_files < needed_files:
            lack = f"{needed_files} files, and {space.free_files} more are allowed"
        else:
            continue
        raise DiskSpaceError(
            f"no room for {what} in {folder}: it needs {lack} by the {space.source}. Delete what "
            "is not needed, keep fewer (checkpoint.keep_last, keep_every, keep_best), or choose "
            "another --run-dir"
        )
