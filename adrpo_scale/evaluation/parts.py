"""Lines that several ranks write: each appends to a file of its own, and rank 0 merges them.

A line is on the disk before the next is begun, so a kill loses what was under way alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.files import own, replace_file, write_all
from adrpo_scale.core.json_files import json_line, read_lines

Line = Mapping[str, Any]


def append(path: Path, rank: int, lines: Sequence[Line]) -> None:
    """Appends lines to a rank's part of a file, and syncs it."""
    descriptor = own(_part(path, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        write_all(descriptor, b"".join(map(json_line, lines)))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def merged(path: Path, fresh: Iterable[Line] = ()) -> dict[int, Line]:
    """Merges all parts into the file, by the lines' `id` and in its order; returns the lines. On
    rank 0 alone, while no rank appends. fresh: this start's lines of all ranks, because a shared
    filesystem may not show the files of other nodes yet."""
    parts = sorted(path.parent.glob(f"{path.stem}-rank-[0-9]*{path.suffix}"))
    found: dict[int, Line] = {}
    for lines in (*map(read_lines, [path, *parts]), fresh):
        for line in lines:
            if type(line.get("id")) is int:
                found[line["id"]] = line  # the newest one: what was gone has been made again
    if parts or found:
        content = b"".join(json_line(found[number]) for number in sorted(found))
        if not path.is_file() or path.read_bytes() != content:
            replace_file(path, content)
    for part in parts:
        part.unlink()
    return found


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.stem}-rank-{rank:04d}{path.suffix}")
