"""Records that the commands of `prepare` write: `skipped.jsonl` and `report.json`; and output."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adrpo_scale.core.console import console
from adrpo_scale.core.errors import DiskSpaceError
from adrpo_scale.core.files import replace_file, replace_json
from adrpo_scale.core.json_files import json_line
from adrpo_scale.core.printable import one_line

SKIPPED, RECORD = "skipped.jsonl", "report.json"
REASON = 500  # characters of a reason in skipped.jsonl: it repeats what a row holds
DECODERS = ("soundfile", "soxr", "av")


def versions() -> dict[str, str | None]:
    """Versions of this package and of all decoders; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("adrpo_scale", *DECODERS):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if found["soundfile"]:
        import soundfile

        found["libsndfile"] = soundfile.__libsndfile_version__
    if found["av"]:
        import av

        found["libavcodec"] = ".".join(map(str, av.library_versions["libavcodec"]))
    return found


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, in one step: a reader sees the old file or all of the new one."""
    replace_file(path, b"".join(map(json_line, rows)))


def write_record(to: Path, content: Mapping[str, Any]) -> None:
    """Writes report.json into the folder `to`."""
    replace_json(to / RECORD, dict(content))


def disk_is_full(to: Path, error: OSError) -> DiskSpaceError:
    """The error for a failed write into the folder `to`."""
    return DiskSpaceError(
        f"{to} cannot be written ({error.strerror}); make room or check the quota, and start the "
        "same command again: it resumes there"
    )


def say(text: str) -> None:
    """Prints a line, which stays one whatever names are in it."""
    console.print(one_line(text), highlight=False, soft_wrap=True)
