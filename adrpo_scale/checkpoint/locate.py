"""The checkpoint that a name stands for, and the one that a run started from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.files import remove_folder, sync_file, sync_folder
from adrpo_scale.core.numbers import natural

ORIGIN = "origin"  # folder of a run: the checkpoint that it started from


def open_checkpoint(name: str) -> Reader:
    """The checkpoint that RUN (its newest), RUN@iteration or a checkpoint folder names.

    Looks in `checkpoints/` first, then in `trajectory/`. Raises CheckpointError, which lists the
    committed iterations, where there is none.
    """
    folder, wanted = Path(name), None
    if not folder.exists() and "@" in name:
        before, _, after = name.rpartition("@")
        wanted = natural(after)
        if wanted is None:
            raise CheckpointError(f"{name!r}: expected RUN@iteration, e.g. runs/mine@120")
        folder = Path(before)
    if (folder / MANIFEST).is_file():
        return Reader(folder)
    there = committed(folder / TRAJECTORY) | committed(folder / CHECKPOINTS)
    full = committed(folder / CHECKPOINTS) or there
    chosen = there.get(wanted) if wanted is not None else full.get(max(full, default=-1))
    if chosen is None:
        known = ", ".join(map(str, sorted(there))) or "none"
        what = "no checkpoint" if wanted is None else f"no checkpoint of iteration {wanted}"
        raise CheckpointError(f"{folder} has {what}; committed iterations: {known}")
    return Reader(chosen)


def pin_origin(source: str, to: Path) -> None:
    """Puts the files of the checkpoint that `source` names at `to`, as hard links where the
    filesystem allows it. On rank 0 alone.

    Where `source` no longer exists, the files that an earlier start has put there are used. Raises
    CheckpointError without either, and for adapters of a rebased base.
    """
    try:
        reader = open_checkpoint(source)
    except CheckpointError:
        if (to / MANIFEST).is_file():
            return
        raise
    document = reader.manifest.document
    if document["lora"] is not None and document["config"]["rebase_reference"]:
        raise CheckpointError(
            f"init_from = {source!r}: its adapters belong to a base that was itself rebased, and "
            "do not hold all of its changes; `adrpo-scale export` it --as merged and start from "
            "that folder as domain.model"
        )
    temporary = to.with_name(to.name + ".tmp")
    remove_folder(temporary)
    temporary.mkdir()
    for name in [MANIFEST, *(file.name for file in reader.manifest.files)]:
        try:
            os.link((reader.folder / name).resolve(), temporary / name)  # not a link's name
        except OSError:
            shutil.copyfile(reader.folder / name, temporary / name)  # another filesystem
            sync_file(temporary / name)
    sync_folder(temporary)
    remove_folder(to)
    os.rename(temporary, to)
    sync_folder(to.parent)


def origin_of(reader: Reader) -> Reader | None:
    """The checkpoint that a checkpoint's run started from; None unless the run is a fork."""
    if reader.manifest.document["origin"] is None:
        return None
    return Reader(reader.folder.parent.parent / ORIGIN)
