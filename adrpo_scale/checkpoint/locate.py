"""The checkpoint that a name stands for, and the one that a run started from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.named import BEST, EVERY, LAST, best_iteration, named
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed, examine
from adrpo_scale.core.dist import Ask
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.files import remove_folder, sync_file, sync_folder

ORIGIN = "origin"  # folder of a run: the checkpoint that it started from
KEPT = "checkpoint.keep_best keeps it"


def open_checkpoint(name: str) -> Reader:
    """The checkpoint that RUN or RUN@last (its newest), RUN@best, RUN@iteration or a checkpoint
    folder names.

    Looks in `checkpoints/` first, then in `trajectory/`. Raises CheckpointError, which lists the
    committed iterations, where there is none.
    """
    found = named(name)
    folder, wanted = found.folder, found.which
    if wanted == EVERY:
        raise CheckpointError(
            f"{name!r} names several checkpoints, and one is expected: RUN@iteration, RUN@last or "
            "RUN@best"
        )
    if (folder / MANIFEST).is_file():
        return Reader(folder)
    there, full = _committed(folder), committed(folder / CHECKPOINTS)
    full = full or there
    newest = wanted is None or wanted == LAST
    if wanted == BEST:
        wanted = best_iteration(folder)
    chosen = full.get(max(full, default=-1)) if newest else there.get(int(wanted or 0))
    if chosen is None:
        known = ", ".join(map(str, sorted(there))) or "none"
        what = "no checkpoint" if newest else f"no checkpoint of iteration {wanted}"
        best = f" (the best evaluation; {KEPT})" if found.which == BEST and there else ""
        raise CheckpointError(f"{folder} has {what}{best}; committed iterations: {known}")
    return Reader(chosen)


def every_checkpoint(name: str) -> list[str]:
    """The names RUN@iteration of all committed checkpoints of RUN@*, in order; for any other name
    the name itself. Raises CheckpointError where there is none."""
    found = named(name)
    if found.which != EVERY:
        return [name]
    there = sorted(_committed(found.folder))
    if not there:
        raise CheckpointError(f"{name!r}: {found.folder} has no checkpoint")
    return [f"{name.rpartition('@')[0]}@{iteration}" for iteration in there]


def _committed(run: Path) -> dict[int, Path]:
    return committed(run / TRAJECTORY) | committed(run / CHECKPOINTS)


def pin_origin(source: str, to: Path, ask: Ask) -> Reader:
    """Puts the files of the checkpoint that `source` names at `to`, as hard links where the
    filesystem allows it, once all have their hashes. On rank 0 alone. ask: runs `hash_part` on
    every rank.

    Where `source` no longer exists, the files that an earlier start has put there are used. Raises
    CheckpointError without either, for a source that is not whole, and for adapters of a rebased
    base; `to` is then unchanged.
    """
    try:
        reader = open_checkpoint(source)
    except CheckpointError:
        if (to / MANIFEST).is_file():
            return pinned_origin(source, to, ask)
        raise
    document = reader.manifest.document
    if document["lora"] is not None and document["config"]["rebase_reference"]:
        raise CheckpointError(
            f"init_from = {source!r}: its adapters belong to a base that was itself rebased, and "
            "do not hold all of its changes; `adrpo-scale export` it --as merged and start from "
            "that folder as domain.model"
        )
    temporary = to.with_name(to.name + ".tmp")
    try:
        _copy(reader, temporary)
        pinned = pinned_origin(source, temporary, ask)
        remove_folder(to)
        os.rename(temporary, to)
    except OSError as error:
        raise CheckpointError(f"init_from = {source!r} cannot be kept as {to}: {error}") from error
    finally:
        remove_folder(temporary)
    sync_folder(to.parent)
    pinned.folder = to
    return pinned


def _copy(reader: Reader, to: Path) -> None:
    remove_folder(to)
    to.mkdir()
    for name in [MANIFEST, *(file.name for file in reader.manifest.files)]:
        place = os.path.realpath(reader.folder / name)  # a link to a link's name would lead nowhere
        try:
            os.link(place, to / name)
        except OSError:
            shutil.copyfile(place, to / name)  # another filesystem
            sync_file(to / name)
    sync_folder(to)


def pinned_origin(source: str, folder: Path, ask: Ask) -> Reader:
    """The checkpoint in the folder `origin` of a run. Raises CheckpointError unless it is whole. On
    rank 0 alone. source: its name in the config."""
    faults, origin = examine(folder, ask)
    if origin is None or faults:
        raise CheckpointError(
            f"init_from = {source!r}: {'; '.join(faults)}. Name another checkpoint, and another "
            "--run-dir"
        )
    return origin


def origin_of(reader: Reader) -> Reader | None:
    """The checkpoint that a checkpoint's run started from; None unless the run is a fork."""
    if reader.manifest.document["origin"] is None:
        return None
    return Reader(reader.folder.parent.parent / ORIGIN)
