"""The folders in a run's `checkpoints/` and `trajectory/`, and the choice of one to resume from.

step-000120            committed
step-000120.RANDOM.tmp being written, or left by a save that was cut short
step-000120.replaced   about to be replaced by one of the same iteration
step-000120.trash      about to be removed
step-000120.broken     set aside because it is not whole; removed after the next commit
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from adrpo_scale.checkpoint.base import OtherVersionError
from adrpo_scale.checkpoint.reader import Reader, UnreadableError
from adrpo_scale.core import dist
from adrpo_scale.core.dist import Ask
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.files import remove_folder

log = logging.getLogger(__name__)

CHECKPOINTS, TRAJECTORY = "checkpoints", "trajectory"
FIRST_COMMIT = "first-checkpoint.json"  # in the run's folder, beside `checkpoints/`
REPLACED, SET_ASIDE = ".replaced", ".broken"
_COMMITTED = re.compile(r"step-(\d{6,})")
_LEFT_OVER = re.compile(r"step-\d{6,}(\.[0-9a-f]+)?\.(tmp|trash|replaced)")


def newest_whole(run: Path, ask: Ask) -> Reader | None:
    """The newest checkpoint whose files all have their hashes; None where there is no checkpoint.
    On rank 0 alone. ask: runs `hash_part` on every rank.

    Broken ones are logged and set aside as `step-NNNNNN.broken`. Raises CheckpointError where all
    checkpoints are broken, OtherVersionError for one of another format version.
    """
    broken: list[Path] = []
    reasons: list[str] = []
    there = _named(run / CHECKPOINTS)
    for folder in (there[iteration] for iteration in sorted(there, reverse=True)):
        faults, reader = examine(folder, ask)
        if not faults:
            _set_aside(broken)
            return reader
        broken.append(folder)
        reasons += faults
        log.warning("checkpoint %s is broken: %s", folder.name, "; ".join(faults))
    if broken:
        raise CheckpointError(
            f"none of the {len(broken)} checkpoints in {run / CHECKPOINTS} is whole: "
            f"{'; '.join(reasons)}. Nothing was changed; start again with another "
            "--run-dir, or with --init-from one of trajectory/"
        )
    return None


def committed(parent: Path) -> dict[int, Path]:
    """Iteration → folder of every committed checkpoint in `checkpoints/` or `trajectory/`; {} where
    nothing has that name. Raises CheckpointError where something else than a folder has it, or it
    cannot be listed: a disk that is not mounted must not look like a run without checkpoints."""
    return {number: path for number, path in _named(parent).items() if path.is_dir()}


def _named(parent: Path) -> dict[int, Path]:
    """As `committed`, with names that stand for no folder: a file, a link to nothing."""
    try:
        names = sorted(os.listdir(parent))
    except OSError as error:
        if not os.path.lexists(parent):
            return {}
        raise CheckpointError(
            f"{parent} is expected to be a folder and cannot be listed ({error.strerror}): mount "
            "its disk if it is a link; if nothing of it is needed, remove it. Nothing was changed"
        ) from error
    matches = ((_COMMITTED.fullmatch(name), parent / name) for name in names)
    return {int(match[1]): path for match, path in matches if match}


def remove_left_overs(run: Path) -> list[str]:
    """Removes the leftovers of interrupted saves and removals, and returns their names; puts back a
    checkpoint whose successor was not yet in place. On rank 0 alone."""
    parents = [run / CHECKPOINTS, run / TRAJECTORY]
    there = [path for parent in parents if parent.is_dir() for path in sorted(parent.iterdir())]
    found = [path for path in there if _LEFT_OVER.fullmatch(path.name)]
    for path in found:
        committed_name = path.with_suffix("")
        try:
            if path.suffix == REPLACED and not os.path.lexists(committed_name):
                os.rename(path, committed_name)  # its successor was not yet in its place
            else:
                remove_folder(path)
        except OSError as error:
            raise CheckpointError(
                f"{path}, left by an interrupted save, cannot be removed ({error}): remove it by "
                "hand, and start again to resume"
            ) from error
    return [path.name for path in found]


def examine(folder: Path, ask: Ask) -> tuple[list[str], Reader | None]:
    """(all faults of a checkpoint, its reader). On rank 0 alone, whose view of the folder all ranks
    use: shared filesystems show some ranks stale ones. ask: runs `hash_part` on every rank.

    Raises OtherVersionError for another format version, CheckpointError where the disk fails.
    """
    try:
        reader = Reader(folder)
    except OtherVersionError:
        raise
    except UnreadableError as error:
        raise _not_now(folder, str(error)) from error
    except CheckpointError as error:
        return [str(error)], None
    answers = ask(reader)
    troubles = [trouble for _, trouble in answers if trouble]
    if troubles:
        # A failing disk or file server is no proof that the files on it are broken.
        raise _not_now(folder, "; ".join(troubles))
    found = [fault for faults, _ in answers for fault in faults]
    if not found:
        reader.count_as_whole()
    return found, reader


def _not_now(folder: Path, trouble: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be read: {trouble}. Nothing was changed; start again when the filesystem "
        "works"
    )


def hash_part(reader: Reader) -> tuple[list[str], str | None]:
    """(faults of this rank's part of a checkpoint's files; the error where one is unreadable)."""
    try:
        return list(reader.faults(reader.manifest.files[dist.rank() :: dist.world_size()])), None
    except OSError as error:
        return [], f"rank {dist.rank()}: {error}"


def _set_aside(folders: Sequence[Path]) -> None:
    for folder in folders:
        aside = folder.with_suffix(SET_ASIDE)
        remove_folder(aside)
        os.rename(folder, aside)
