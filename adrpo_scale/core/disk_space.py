"""Free room of a folder: of its filesystem and, where the site has a command for it, of the quota.

No system call states what a quota leaves on a shared filesystem, so each site names its command in
`checkpoint.quota_command`. The shell runs it with ADRPO_RUN_DIR set to an existing folder on the
filesystem; it prints the free bytes, or the free bytes and the free number of files.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adrpo_scale.core.errors import ConfigError, DiskSpaceError

QUOTA_SECONDS = 30.0
ANSWER_BYTES = 10_000  # of a pipe; an answer has at most forty
_ANSWER = re.compile(r"\s*(-?[0-9]{1,18})(?:\s+(-?[0-9]{1,18}))?\s*")


@dataclass(frozen=True)
class Space:
    """Free room. free_files: None where nothing limits their number. source: `disk` or `quota`,
    whichever has fewer bytes left."""

    free_bytes: int
    free_files: int | None
    source: str


def size_text(count: float) -> str:
    """Bytes as people read them: 1.2 GB (decimal)."""
    if count < 1000:
        return f"{count:.0f} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:  # a larger count would be rounded to 1000.0
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def disk_space(folder: Path) -> Space:
    """Free room of the filesystem of `folder`, which need not exist yet.

    Raises DiskSpaceError where the filesystem does not answer.
    """
    try:
        facts = os.statvfs(_nearest(folder))
    except OSError as error:
        raise DiskSpaceError(
            f"cannot find out how much room there is in {folder} ({error}); choose another folder"
        ) from error
    files = facts.f_favail if facts.f_files else None  # btrfs and others report 0
    return Space(facts.f_bavail * facts.f_frsize, files, "disk")


def free_space(folder: Path, quota_command: str | None = None) -> Space:
    """Free room of `folder`, which need not exist yet: the smaller of disk and quota, for bytes and
    for files separately.

    Raises ConfigError where the quota's command fails or prints anything else, DiskSpaceError where
    the filesystem does not answer.
    """
    limits = _limits(folder, quota_command)
    files = [limit.free_files for limit in limits if limit.free_files is not None]
    fewest = min(limits, key=lambda limit: limit.free_bytes)
    return Space(fewest.free_bytes, min(files, default=None), fewest.source)


_KEEP_FEWER = (
    "Delete what is not needed, keep fewer (checkpoint.keep_last, keep_every, keep_best), or "
    "choose another --run-dir"
)


def check_space(
    folder: Path,
    needed_bytes: int,
    needed_files: int,
    quota_command: str | None,
    what: str,
    remedy: str = _KEEP_FEWER,
) -> None:
    """Raises DiskSpaceError unless `folder` has room for `what` by the disk and by the quota."""
    for limit in _limits(folder, quota_command):
        lack = shortage(limit, needed_bytes, needed_files)
        if lack is not None:
            raise DiskSpaceError(f"no room for {what} in {folder}: it needs {lack}. {remedy}")


def shortage(space: Space, needed_bytes: int, needed_files: int) -> str | None:
    """Need and free room, as the end of an error's sentence; None where there is room."""
    if space.free_bytes < needed_bytes:
        lack = f"{size_text(needed_bytes)}, and {size_text(space.free_bytes)} are free"
    elif space.free_files is not None and space.free_files < needed_files:
        lack = f"{needed_files} files, and {space.free_files} more are allowed"
    else:
        return None
    return f"{lack} by the {space.source}"


def _limits(folder: Path, quota_command: str | None) -> list[Space]:
    disk = disk_space(folder)
    command = quota_command or os.environ.get("ADRPO_QUOTA_COMMAND")
    return [disk] if command is None else [disk, _quota(_nearest(folder), command)]


def _nearest(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def _quota(folder: Path, command: str) -> Space:
    code, output, complaint = _run(command, folder)
    found = _ANSWER.fullmatch(output)
    if code or found is None:
        raise _not_an_answer(
            command, f"exited with {code} and printed {_short(output)}, {_short(complaint)}"
        )
    # The number is negative for a user who is over a soft limit.
    count, files = max(0, int(found[1])), found[2]
    return Space(count, None if files is None else max(0, int(files)), "quota")


def _run(command: str, folder: Path) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a shell command.

    The command has a session of its own: at a limit the shell's children must end with it, because
    they hold the pipes open.
    """
    try:
        process = subprocess.Popen(
            command,
            bufsize=0,
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"ADRPO_RUN_DIR": str(folder)},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise _not_an_answer(command, f"cannot be started ({error})") from error
    with process.stdout, process.stderr:  # type: ignore[union-attr]
        said, fault = _heard(process)
        if fault is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # SIGKILL ends no wait for a dead server
                process.wait(timeout=1)
            raise _not_an_answer(command, fault)
    output, complaint = (text.decode(errors="replace") for text in said)
    return process.returncode, output, complaint


def _heard(process: subprocess.Popen[bytes]) -> tuple[list[bytes], str | None]:
    """(what a process wrote to its two pipes, why it is not waited for any longer). A command that
    never ends, or writes without end, costs QUOTA_SECONDS and ANSWER_BYTES."""
    said, deadline = [b"", b""], time.monotonic() + QUOTA_SECONDS
    late = f"has not answered in {QUOTA_SECONDS:g} s"
    with selectors.DefaultSelector() as selector:
        for number, pipe in enumerate((process.stdout, process.stderr)):
            selector.register(pipe, selectors.EVENT_READ, number)  # type: ignore[arg-type]
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                return said, late
            for key, _ in ready:
                piece = os.read(key.fd, ANSWER_BYTES)
                said[key.data] += piece
                if not piece:
                    selector.unregister(key.fileobj)
            if max(map(len, said)) > ANSWER_BYTES:
                return said, f"printed more than {ANSWER_BYTES:,} bytes"
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return said, late
    return said, None


def _not_an_answer(command: str, what: str) -> ConfigError:
    return ConfigError(
        f"checkpoint.quota_command = {_short(command)} {what}; expected the free bytes, or the "
        "free bytes and the free number of files, as integers on standard output. Try it in a "
        "shell with ADRPO_RUN_DIR set to the run folder, or leave the setting out"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
