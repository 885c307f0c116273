"""The folder of an evaluation, held by one command at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adrpo_scale.core import dist
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.folder_lock import RunLock


def make_folder(folder: Path) -> None:
    """Makes the folder. Raises RunFolderError where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made ({error}); choose another --to") from error


@contextmanager
def held(folder: Path) -> Iterator[RunLock]:
    """Holds the folder's lock on rank 0: of two evaluations in one folder, each would remove the
    other's latest lines. Collective."""
    lock = RunLock(folder)
    dist.run_on_main(lambda: make_folder(folder))
    lock.join(dist.run_on_main(lock.acquire))
    try:
        yield lock
    finally:
        if dist.is_main():
            lock.release()
