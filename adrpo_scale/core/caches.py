"""The folder of everything that is computed once and kept for later runs."""

from __future__ import annotations

import os
from pathlib import Path

from adrpo_scale.core.errors import CacheError
from adrpo_scale.core.files import temporary_beside, write_new

REMEDY = "point ADRPO_CACHE at a folder that can be written and that all nodes share"


def cache_root() -> Path:
    """$ADRPO_CACHE, else ~/.cache/adrpo_scale; all nodes must see it. Raises CacheError where there
    is no home folder."""
    try:
        stated = os.environ.get("ADRPO_CACHE")
        return Path(stated).expanduser() if stated else Path.home() / ".cache" / "adrpo_scale"
    except RuntimeError as error:  # a user without an entry in the password file
        raise CacheError(f"there is no home folder for the cache ({error}): {REMEDY}") from error


def why_unwritable(folder: Path) -> str | None:
    """Why no file can be made in a folder, which need not exist yet; None where one can."""
    folder = folder.absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return f"{nearest} is a file"
    probe = temporary_beside(nearest / ".adrpo-writable")
    try:
        write_new(probe, b"")
        probe.unlink()
    except OSError as error:
        return error.strerror or repr(error)
    return None


def unwritable(folder: Path, why: str) -> CacheError:
    """The error for a cache that cannot be written."""
    return CacheError(f"the cache {folder} cannot be written ({why}): {REMEDY}")
