"""Brings the files of one repository into the hub's cache, at one commit, by the hub's own client.

The client keeps files that are whole and begins others anew; what it leaves behind, and what it
would take for whole, is cleared away here.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.files import replace_file
from adrpo_scale.hub import access as hub_access
from adrpo_scale.hub.access import RepoPlan
from adrpo_scale.hub.lock import size_of
from adrpo_scale.hub.needs import repo_folder, snapshot_folder

IDLE_SECONDS = 600.0  # after which nobody writes to a file any more: the client gives up earlier


def remember_newest(plan: RepoPlan) -> None:
    """So that tools which ask for no revision in particular are served offline, too: after the
    download, for they may take half a snapshot for a whole one."""
    path = repo_folder(plan.need.key) / "refs" / "main"
    if path.is_file() and path.read_text().strip() == plan.revision:
        return  # the cache may be read-only
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, plan.revision.encode())


def download(plan: RepoPlan) -> None:
    """By the hub's client, at the plan's commit; exactly the files that are missing."""
    from huggingface_hub import snapshot_download

    snapshot = snapshot_folder(plan.need.key, plan.revision)
    for name in plan.to_bring:
        _remove_damaged(snapshot / name)
    _remove_left_overs(repo_folder(plan.need.key) / "blobs")
    try:
        snapshot_download(
            plan.need.name,
            repo_type=plan.need.type,
            revision=plan.revision,
            allow_patterns=[_literally(name) for name in plan.to_bring],
        )
    except Exception as error:
        if not hub_access.is_of_the_network(error):
            raise
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ModelNotFoundError(
            f"the download of {plan.need.type} {plan.need.name!r} stopped ({type(error).__name__}: "
            f"{reason}). Run the same command again: files that are whole are kept. Where it stops "
            "again and again, try HF_HUB_DISABLE_XET=1"
        ) from error
    lost = [name for name, size in plan.to_bring.items() if size_of(snapshot / name) != size]
    if lost:  # without an answer the client is content with what is in the cache
        raise ModelNotFoundError(
            f"{plan.need.type} {plan.need.name!r}: {', '.join(lost[:3])} did not come whole; run "
            "the same command again"
        )


def _remove_damaged(path: Path) -> None:
    """The hub's client takes a file of any size for whole, once it has its name."""
    if path.exists() or path.is_symlink():
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _remove_left_overs(blobs: Path) -> None:
    """Of downloads that were killed: the client begins such a file anew, under another name, and
    gigabytes would count against the quota for ever. What was written to lately is another's."""
    for path in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > IDLE_SECONDS:
                path.unlink()


def _literally(name: str) -> str:
    """A file's name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
