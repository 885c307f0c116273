"""`prefetch.lock`, which pins the repositories that a run reads from the hub: revisions and files.

`adrpo-scale prefetch` writes the lock on a login node. Every loader of a model follows it, so that
every start of a run, on every node, reads the same files of the cache without asking the hub.
Nothing is written here at training time, so the cache may be read-only. Files are compared by size
alone: hashing gigabytes at every requeue would cost more than the check is worth.

The lock is the file `prefetch.lock` in the current folder, or the one that $ADRPO_PREFETCH_LOCK
names. It is JSON, sorted, one line a file, to be read and committed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import AdrpoError, ModelNotFoundError
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import parse_object, read_regular
from adrpo_scale.core.paths import DEMO_PREFIX, resolve_path, usual_path
from adrpo_scale.hub.needs import (
    HubNeed,
    Key,
    RepoType,
    cache_folder,
    converted_name,
    snapshot_folder,
)
from adrpo_scale.hub.soundness import damage_of

FORMAT = 1
REMEDY = "run `adrpo-scale prefetch CONFIG` on a login node"


@dataclass(frozen=True)
class LockedRepo:
    """One repository of the lock.

    revision: its commit. licence: that of its card, None if it states none. allow, ignore: the
    patterns of the files that were prefetched. files: sizes in bytes by path inside `folder`.
    converted: the folder of converted pickles, relative to the cache; None for the hub's snapshot.
    """

    type: RepoType
    id: str
    revision: str
    licence: str | None
    allow: tuple[str, ...]
    ignore: tuple[str, ...]
    files: Mapping[str, int]
    converted: str | None = None

    @property
    def key(self) -> Key:
        return self.type, self.id

    @property
    def bytes(self) -> int:
        return sum(self.files.values())

    @property
    def folder(self) -> Path:
        """Its folder on this machine."""
        if self.converted is not None:
            return cache_folder() / self.converted
        return snapshot_folder(self.key, self.revision)


# ---- the file ------------------------------------------------------------------------------------


def lock_path() -> Path:
    """$ADRPO_PREFETCH_LOCK, else `prefetch.lock` in the current folder."""
    return Path(os.environ.get("ADRPO_PREFETCH_LOCK") or "prefetch.lock").expanduser()


def read_lock(path: Path | None = None) -> dict[Key, LockedRepo]:
    """The lock's repositories; none where there is no lock. Raises ModelNotFoundError for a file
    that is no lock, and for one that $ADRPO_PREFETCH_LOCK names and that is not there."""
    if path is None:
        path = lock_path()
        if os.environ.get("ADRPO_PREFETCH_LOCK") and not path.is_file():
            raise ModelNotFoundError(
                f"ADRPO_PREFETCH_LOCK names {path}, which is not there: write it with "
                "`adrpo-scale prefetch CONFIG`, or unset the variable"
            )
    try:
        facts = path.stat()
    except FileNotFoundError:
        return {}
    return dict(_read(path, facts.st_mtime_ns, facts.st_size, facts.st_ino))


@lru_cache(maxsize=4)
def _read(path: Path, *version: int) -> Mapping[Key, LockedRepo]:
    try:
        document = parse_object(read_regular(path))
        if document["format"] != FORMAT:
            raise ValueError(f"its format is {document['format']}, known is {FORMAT}")
        repos = [_parsed(entry) for entry in document["repos"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelNotFoundError(
            f"{path.absolute()} is no prefetch lock ({type(error).__name__}: {error}); expected "
            "a file written by `adrpo-scale prefetch`: delete it and prefetch again"
        ) from error
    return {repo.key: repo for repo in repos}


def _parsed(entry: Mapping[str, Any]) -> LockedRepo:
    return LockedRepo(
        type=entry["type"],
        id=entry["id"],
        revision=entry["revision"],
        licence=entry["licence"],
        allow=tuple(entry["patterns"].split()),
        ignore=tuple(entry["ignored"].split()),
        files={str(name): int(size) for name, size in entry["files"].items()},
        converted=entry["converted"],
    )


def write_lock(path: Path, repos: Iterable[LockedRepo]) -> None:
    """Replaces the file in one step; the same repositories give the same bytes."""
    entries = [
        {
            "type": repo.type,
            "id": repo.id,
            "revision": repo.revision,
            "licence": repo.licence,
            "bytes": repo.bytes,
            "number_of_files": len(repo.files),
            "converted": repo.converted,
            "patterns": " ".join(sorted(repo.allow)),  # on one line: files are what people read
            "ignored": " ".join(sorted(repo.ignore)),
            "files": dict(sorted(repo.files.items())),
        }
        for repo in sorted(repos, key=lambda repo: (repo.id.lower(), repo.type))
    ]
    replace_json(path, {"format": FORMAT, "repos": entries})


# ---- files on this machine -----------------------------------------------------------------------


class NotCachedError(ModelNotFoundError):
    """A repository is not pinned and not in the cache: the hub may have it."""


class PinnedError(ModelNotFoundError):
    """A repository is pinned, and its pinned files are not there: no others may be read."""


def find_here(need: HubNeed) -> Path:
    """The folder of a need on this machine, without asking the hub.

    A hub id is at the lock's revision where the lock names it, else at the cache's newest. Raises
    ModelNotFoundError that names the missing files: PinnedError or NotCachedError for a hub id.
    """
    if need.name.startswith(DEMO_PREFIX):
        return resolve_path(need.name)
    folder = usual_path(need.name)
    if need.name and folder.is_dir():
        return folder
    if not need.is_hub_id:
        raise ModelNotFoundError(
            f"{need.type} folder {need.name!r} is not there; give a folder or a hub id"
        )
    locked = read_lock().get(need.key)
    if locked is None:
        return _find_cached(need)
    check_locked(need, locked)
    return locked.folder


def check_locked(need: HubNeed, locked: LockedRepo) -> None:
    """Raises PinnedError unless every file that the need covers is there with its pinned size."""
    where = f"{need.type} {need.name!r}"
    pinned = f"{lock_path()} at revision {locked.revision[:12]}"
    check_revision(need, locked)
    if not (set(need.allow) <= set(locked.allow) and set(locked.ignore) <= set(need.ignore)):
        raise PinnedError(
            f"{where} is in {pinned}, but was prefetched for other settings, which read other files"
        )
    wanted = {name: size for name, size in locked.files.items() if need.covers(name)}
    sizes = {name: size_of(locked.folder / name) for name in wanted}
    missing = [name for name in wanted if sizes[name] is None]
    if len(missing) == len(wanted) and not locked.folder.is_dir():
        raise PinnedError(f"{where} is in {pinned}, but not in the cache {cache_folder()}")
    faults = [f"{name} is missing" for name in missing]
    for name, size in wanted.items():
        if name not in missing and sizes[name] != size:
            faults.append(f"{name} has {sizes[name]} bytes instead of {size}")
    if faults:
        shown = "; ".join(faults[:4]) + (f"; and {len(faults) - 4} more" if faults[4:] else "")
        raise PinnedError(f"{where} is in {pinned}, but incomplete in {locked.folder}: {shown}")


def check_revision(need: HubNeed, locked: LockedRepo) -> None:
    """Raises PinnedError where the need names another commit than the lock."""
    if need.revision not in (None, locked.revision):
        raise PinnedError(
            f"{need.type} {need.name!r} is in {lock_path()} at revision {locked.revision[:12]}, "
            f"and revision {need.revision} is asked for: take that one with `adrpo-scale prefetch "
            "--upgrade`, or keep it in a lock of its own (ADRPO_PREFETCH_LOCK)"
        )


def size_of(path: Path) -> int | None:
    """Size in bytes; None where there is no such file, or a broken link."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _find_cached(need: HubNeed) -> Path:
    """The newest snapshot of the hub's cache. Raises NotCachedError unless it is complete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            need.name,
            repo_type=need.type,
            revision=need.revision,
            allow_patterns=list(need.allow),
            ignore_patterns=list(need.ignore) or None,
            local_files_only=True,
        )
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{need.type} folder {need.name!r} is not there, and it is no hub id either: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        partly = getattr(error, "snapshot_path", None)
        state = f"incomplete in {partly}" if partly else f"not in the cache {cache_folder()}"
        raise NotCachedError(f"{need.type} {need.name!r} is {state}") from error
    folder = Path(found)
    lost = [path for path in folder.rglob("*") if path.is_symlink() and not path.exists()]
    if lost:
        raise NotCachedError(
            f"{need.type} {need.name!r} is incomplete in {folder}: {lost[0].name} is a broken link"
        )
    converted = cache_folder() / converted_name(need.key, folder.name)
    return converted if need.type == "model" and converted.is_dir() else folder


def check(needs: Sequence[HubNeed]) -> list[str]:
    """A line for every need that is missing on this machine; looks at names and sizes alone and
    never asks the hub."""
    return [line for line, _ in missing(needs)]


def damaged(needs: Sequence[HubNeed]) -> list[str]:
    """A line for every file of a model that is here and cannot be read: of what `check` finds
    nothing to say of. Reads headers and small files, no tensor."""
    return damage_of(needs, find_here)


def missing(needs: Sequence[HubNeed]) -> list[tuple[str, bool]]:
    """(line of `check`, whether the hub may have it: it is not pinned) of each missing need."""
    found = []
    for need in needs:
        try:
            find_here(need)
        except AdrpoError as error:
            line = f"{need.what}: {error}"
            found.append((line, isinstance(error, NotCachedError)))
    return found


def fingerprint(needs: Sequence[HubNeed]) -> str:
    """16 hex digits over the revisions and file sizes of everything that the needs cover, as this
    machine sees them: two nodes with equal digits read the same files. No file is opened; a missing
    need counts by its error, and a folder that is no hub id by its name and its files' sizes."""
    lines = []
    for need in sorted(needs, key=lambda need: (need.key, need.allow)):
        try:
            folder = find_here(need)
        except AdrpoError as error:
            lines.append(f"{need.key} {error}")
            continue
        lines.append(f"{need.key} {folder.name}")
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        sizes = zip(names, paths, strict=True)
        lines += [f"{name} {size_of(path)}" for name, path in sizes if need.covers(name)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
