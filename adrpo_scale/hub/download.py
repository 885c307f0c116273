"""Brings the files of one repository into the hub's cache, at one commit, by the hub's own client.

The client keeps complete files and starts others again. Its leftovers, and damaged files that it
would accept, are removed here first.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.files import replace_file
from adrpo_scale.hub import access as hub_access
from adrpo_scale.hub.access import RepoPlan
from adrpo_scale.hub.lock import size_of
from adrpo_scale.hub.needs import repo_folder, snapshot_folder

IDLE_SECONDS = 600.0  # without a write, after which a download is dead: the client gives up earlier


def remember_newest(plan: RepoPlan) -> None:
    """Points the cache's `main` at the plan's commit, for tools that name no revision and work
    offline. Call it after the download: they would accept an incomplete snapshot."""
    path = repo_folder(plan.need.key) / "refs" / "main"
    if path.is_file() and path.read_text().strip() == plan.revision:
        return  # the cache may be read-only
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, plan.revision.encode())


def download(plan: RepoPlan) -> None:
    """Downloads exactly the missing files of a plan, at its commit. Raises ModelNotFoundError where
    the network fails or a file is incomplete afterwards."""
    from huggingface_hub import snapshot_download

    snapshot = snapshot_folder(plan.need.key, plan.revision)
    blobs = repo_folder(plan.need.key) / "blobs"
    for name in plan.to_bring:
        _remove_damaged(snapshot / name, blobs)
    _remove_left_overs(blobs)
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
            f"{reason}). Run the same command again: complete files are kept. If it stops "
            "repeatedly, try HF_HUB_DISABLE_XET=1"
        ) from error
    lost = [name for name, size in plan.to_bring.items() if size_of(snapshot / name) != size]
    if lost:  # where the hub does not answer, the client accepts an incomplete cache
        raise ModelNotFoundError(
            f"{plan.need.type} {plan.need.name!r}: {', '.join(lost[:3])} did not arrive complete; "
            "run the same command again"
        )


def _remove_damaged(path: Path, blobs: Path) -> None:
    """Removes a file and its content: the hub's client accepts a file of any size by its name. A
    link that leads elsewhere than to the content loses its name alone."""
    if path.is_symlink():
        content = path.parent / os.readlink(path)
        if content.parent.resolve() == blobs.resolve():
            content.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _remove_left_overs(blobs: Path) -> None:
    """Removes files of killed downloads: the client starts such a file again under another name, so
    gigabytes would count against the quota for ever. A file that was written to within IDLE_SECONDS
    belongs to another process."""
    for path in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > IDLE_SECONDS:
                path.unlink()


def _literally(name: str) -> str:
    """A file's name as a pattern that matches nothing else."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
