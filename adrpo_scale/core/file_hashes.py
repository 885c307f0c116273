"""SHA-256 of large files, cached: hashing 9 GB at every start takes longer than loading them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.caches import REMEDY, cache_root
from adrpo_scale.core.errors import CacheError
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import read_object, say_once
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.tensor_files import file_sha256

log = logging.getLogger(__name__)

SETTLED = 2.0  # seconds since its last change, from which on the hash of a file is remembered
KEPT = 20_000  # hashes, the newest ones: some 3 MB
_SEAL = "sha256"  # the name of the hash over all others; a label of a file has two colons
_BLOB = re.compile(r"[0-9a-f]{64}")


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 in hex by path. Cached under path, size and modification time; a large file of the
    hub's cache carries its hash as its name. A cache that cannot be written costs time alone."""
    paths = list(paths)
    labels, found = _remembered(paths)
    unknown = [path for path in labels if path not in found]
    if unknown:
        pace = Pace("hashing model files", sum(path.stat().st_size for path in unknown))
        fresh = {path: file_sha256(path, pace) for path in unknown}
        found |= fresh
        _remember({labels[path]: digest for path, digest in fresh.items()})
    return {path: found[path] for path in paths}


def known_hashes(paths: Sequence[Path]) -> dict[Path, str] | None:
    """As `file_hashes`, without hashing any file; None where a hash is not known yet."""
    _, found = _remembered(paths)
    return found if len(found) == len(set(paths)) else None


def _remembered(paths: Sequence[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """(labels in the cache of files that are in no hub's cache, the hashes that are known)."""
    known = _memory()
    labels, found = {}, {}
    for path in paths:
        target = Path(os.path.realpath(path))  # resolve() ends at a loop
        if target.parent.name == "blobs" and _BLOB.fullmatch(target.name):
            found[path] = target.name
            continue
        stat = path.stat()
        labels[path] = f"{path}:{stat.st_size}:{stat.st_mtime_ns}"
        if labels[path] in known:
            found[path] = known[labels[path]]
    return labels, found


class HashMemory:
    """Hashes of files whose contents are compared with a stated hash: a checkpoint's.

    A hash is remembered under everything that the file system says of a file, the time of its last
    change of any kind included, which no program can set. A file that changed a moment ago is not
    remembered: clocks of file systems are coarse, and a later change could have the same time.
    """

    def __init__(self) -> None:
        self._known = _memory()
        self._fresh: dict[str, str] = {}

    def has_hash(self, path: Path, sha256: str, pace: Pace) -> bool:
        """Whether a file has this hash. What the memory does not know, or knows otherwise, is read:
        the memory may be damaged, too. Raises OSError where the file cannot be read."""
        label, size, changed = _exact_label(path)
        if self._known.get(label) == sha256:
            pace.step(size)
            return True
        if file_sha256(path, pace) != sha256:
            return False
        if _exact_label(path)[0] == label and time.time() - changed > SETTLED:
            self._fresh[label] = sha256
        return True

    def keep(self) -> None:
        """Writes the new hashes, for later processes."""
        if self._fresh:
            _remember(self._fresh)
            self._fresh = {}


def _exact_label(path: Path) -> tuple[str, int, float]:
    """(label in the cache, bytes, time of the last change in seconds) of a file."""
    place = Path(os.path.realpath(path))
    stat = place.stat()
    times = f"{stat.st_mtime_ns}:{stat.st_ctime_ns}"
    return f"{place}:{stat.st_ino}:{stat.st_size}:{times}", stat.st_size, stat.st_ctime


def _place() -> Path:
    return cache_root() / "embeddings" / "file-hashes.json"


def _memory() -> dict[str, str]:
    """The hashes of earlier runs; {} where there are none, or the file is damaged: a wrong one
    would make a model another one."""
    try:
        known = read_object(_place()) or {}
    except CacheError:  # there is no home folder
        return {}
    stated = known.pop(_SEAL, None)  # of versions before: none
    if stated not in (None, _sealed(known)):
        say_once(_place(), "its contents do not have the hash it states; files are hashed again")
        return {}
    return {k: v for k, v in known.items() if isinstance(v, str) and _BLOB.fullmatch(v)}


def _sealed(known: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _remember(fresh: dict[str, str]) -> None:
    # Read again: other runs may have added theirs meanwhile.
    known = dict(list((_memory() | fresh).items())[-KEPT:])
    try:
        write_cached(_place(), json.dumps(known | {_SEAL: _sealed(known)}).encode())
    except (OSError, CacheError) as error:
        log.warning("hashes of model files are not kept (%s): %s", error, REMEDY)


def write_cached(path: Path, data: bytes) -> None:
    """Writes a file of the cache in one step, and waits until it is on the disk: one that a power
    cut has left empty would be there at every later start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data)
