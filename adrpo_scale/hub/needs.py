"""Models and datasets that components read from the hub, and their folders in the hub's cache.

A component declares its models and datasets once, as `HubNeed`s of its config (`needs_from_hub`),
for loading as for `prefetch`: a second list of files would miss one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import DEMO_PREFIX, usual_path

CONVERTED = "adrpo_scale"  # the folder of converted weights, inside the hub's cache
RepoType = Literal["model", "dataset"]
Key = tuple[str, str]  # (type, id)


@dataclass(frozen=True)
class HubNeed:
    """A model or dataset that a component reads: a folder, `demo:NAME` or a hub id.

    what: the setting that names it. allow, ignore: patterns of its files, as `snapshot_download`
    takes them; the default is everything. raw: its weights are read here alone, without what its
    library would add to them (adapters beside them, quantisation). revision: a commit, where
    another than the lock's or the newest is meant.
    """

    name: str
    what: str = "model"
    allow: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    type: RepoType = "model"
    raw: bool = False
    revision: str | None = None

    @property
    def key(self) -> Key:
        return self.type, self.name

    @property
    def is_hub_id(self) -> bool:
        """Whether the name has the form of a hub id and there is no such folder."""
        name = self.name
        if name.startswith((DEMO_PREFIX, ".", "/", "~")) or name.count("/") != 1:
            return False
        return not usual_path(name).is_dir()

    @property
    def parts(self) -> list[str]:
        """The folders inside the repository that the patterns name: components of a pipeline."""
        folders = (pattern.partition("/")[0] for pattern in self.allow if "/" in pattern)
        return [name for name in dict.fromkeys(folders) if not set(name) & set("*?[")]

    @property
    def named(self) -> list[str]:
        """The safetensors files that the patterns name without a wildcard: those of weights under a
        name that their authors chose, which are converted where there are only pickles of them."""
        names = (pattern for pattern in self.allow if not set(pattern) & set("*?["))
        return [name for name in names if name.endswith(".safetensors")]

    def covers(self, file: str) -> bool:
        """Whether a file, by its path in the repository, is read."""
        picked = any(fnmatchcase(file, _whole(pattern)) for pattern in self.allow)
        return picked and not any(fnmatchcase(file, _whole(pattern)) for pattern in self.ignore)


def _one_revision(a: HubNeed, b: HubNeed) -> str | None:
    if a.revision and b.revision and a.revision != b.revision:
        raise ConfigError(
            f"{a.type} {a.name!r} is needed at the revisions {a.revision[:12]} and "
            f"{b.revision[:12]}, and a lock holds one: name the folder of a copy for the other"
        )
    return a.revision or b.revision


def _whole(pattern: str) -> str:
    """A pattern that names a folder, "vae/", matches the folder's files."""
    return pattern + "*" if pattern.endswith("/") else pattern


def joined(needs: Iterable[HubNeed]) -> list[HubNeed]:
    """One need per repository, which covers the files of all its needs; in the order given. Raises
    ConfigError for a repository that is needed at two revisions."""
    found: dict[Key, HubNeed] = {}
    for need in needs:
        other = found.get(need.key)
        if other is None:
            found[need.key] = need
        else:
            found[need.key] = replace(
                other,
                revision=_one_revision(other, need),
                what=", ".join(dict.fromkeys([*other.what.split(", "), need.what])),
                allow=tuple(dict.fromkeys([*other.allow, *need.allow])),
                ignore=tuple(pattern for pattern in other.ignore if pattern in need.ignore),
                raw=other.raw or need.raw,
            )
    return list(found.values())


# ---- the cache -----------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The hub's cache: $HF_HUB_CACHE, or hub/ in $HF_HOME."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def repo_folder(key: Key) -> Path:
    """The folder of all revisions of a repository in the hub's cache."""
    type, name = key
    return cache_folder() / f"{type}s--{name.replace('/', '--')}"


def snapshot_folder(key: Key, revision: str) -> Path:
    """The folder of one revision of a repository in the hub's cache."""
    return repo_folder(key) / "snapshots" / revision


def converted_name(key: Key, revision: str) -> str:
    """The folder of a repository's converted weights, relative to the hub's cache."""
    return f"{CONVERTED}/{key[1].replace('/', '--')}/{revision}"
