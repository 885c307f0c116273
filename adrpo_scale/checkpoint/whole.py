"""The check that commands make of a checkpoint before they use anything of it."""

from __future__ import annotations

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed
from adrpo_scale.core import dist
from adrpo_scale.core.errors import CheckpointError, agreed


def require_whole(reader: Reader, remembered: bool = True) -> None:
    """Raises CheckpointError, the same on every rank, unless every file has the hash that the
    manifest states. Collective: each rank hashes a part of the files.

    remembered: files that were hashed before and are unchanged since are not read again.
    """
    mine = reader.manifest.files[dist.rank() :: dist.world_size()]
    try:
        found = list(reader.faults(mine, remembered))
    except OSError as error:
        found = [f"rank {dist.rank()} cannot read it: {error}"]
    faults = [fault for part in dist.gather_objects(found) for fault in part]
    if faults:
        raise agreed(
            CheckpointError(f"{reader.folder} is not whole: {'; '.join(faults)}. {_remedy(reader)}")
        )
    reader.count_as_whole()


def _remedy(reader: Reader) -> str:
    run = reader.folder.parent.parent
    there: set[int] = set()
    if reader.folder.parent.name in (CHECKPOINTS, TRAJECTORY):
        there = committed(run / CHECKPOINTS).keys() | committed(run / TRAJECTORY).keys()
    others = ", ".join(f"{run}@{n}" for n in sorted(there - {reader.iteration}))
    return f"Name another checkpoint: {others}" if others else "Name another checkpoint"
