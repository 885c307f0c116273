"""SHA-256 of large files, cached: hashing 9 GB at every start takes longer than loading them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from adrpo_scale.core.tensor_files import file_sha256

_BLOB = re.compile(r"[0-9a-f]{64}")


def cache_root() -> Path:
    """$ADRPO_CACHE, else ~/.cache/adrpo_scale; all nodes must see it."""
    return Path(os.environ.get("ADRPO_CACHE") or Path.home() / ".cache" / "adrpo_scale")


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 in hex by path. Cached under path, size and modification time; a large file of the
    hub's cache carries its hash as its name."""
    memory = cache_root() / "embeddings" / "file-hashes.json"
    known: dict[str, str] = json.loads(memory.read_text()) if memory.is_file() else {}
    before, found = len(known), {}
    for path in paths:
        target = path.resolve()
        if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            found[path] = target.name
            continue
        stat = path.stat()
        label = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if label not in known:
            known[label] = file_sha256(path)
        found[path] = known[label]
    if len(known) > before:
        write_atomically(memory, json.dumps(known).encode())
    return found


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that no other process sees half-written. It is not synced to the disk: only for
    data that can be computed again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(data)
    part.replace(path)
