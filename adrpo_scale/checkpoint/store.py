"""Writes and commits checkpoints, and removes old ones.

A save is collective, over a process group of its own and in a thread of its own:

    1. rank 0 checks the room and makes `step-000120.RANDOM.tmp/`: a process that has lost the run
       folder and does not know it yet works in one of its own
    2. each rank writes its file there and waits until it is on the disk
    3. sizes, hashes and ranges go to rank 0; if any rank failed, the folder is removed again, every
       rank learns of it, and the previous checkpoint is unchanged
    4. rank 0 writes the manifest, last, and renames the folder to `step-000120/`: the commit
    5. only then are old checkpoints removed

`trajectory/` holds weights without optimizer state in the same format; they are never removed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.base import (
    MANIFEST,
    CheckpointConfig,
    Manifest,
    Piece,
    StoredTensor,
    check_tiling,
    folder_name,
)
from adrpo_scale.checkpoint.retention import kept, read_values
from adrpo_scale.checkpoint.shelf import (
    CHECKPOINTS,
    FIRST_COMMIT,
    REPLACED,
    SET_ASIDE,
    TRAJECTORY,
    committed,
)
from adrpo_scale.checkpoint.staging import (
    LocalSets,
    Stage,
    StagedPiece,
    parted,
    shares,
    stored_bytes,
)
from adrpo_scale.core import dist
from adrpo_scale.core.disk_space import check_space, size_text
from adrpo_scale.core.errors import AdrpoError, CheckpointError, ConfigError, DiskSpaceError
from adrpo_scale.core.files import (
    remove_folder,
    replace_json,
    sync_folder,
    temporary_beside,
    write_durably,
)
from adrpo_scale.core.tensor_files import FileFacts, TensorFileWriter

log = logging.getLogger(__name__)

FULL, WEIGHTS = "full", "weights"


@dataclass(frozen=True)
class Saved:
    """The end of a save. seconds: from the copy to the commit. error: None if it was committed.
    is_final: no later save can succeed either."""

    kind: str
    iteration: int
    seconds: float
    error: str | None = None
    is_final: bool = False


@dataclass(frozen=True)
class _Written:
    """The files of one rank, each with its pieces (set, name, start, stop), or the rank's error."""

    files: Sequence[tuple[FileFacts, Sequence[tuple[str, str, int, int]]]] = ()
    error: str | None = None


@dataclass(frozen=True)
class _Job:
    kind: str
    iteration: int
    folder: Path  # of the committed checkpoint
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]  # of all tensors, by set and name
    pieces: Sequence[StagedPiece]
    document: Mapping[str, Any]
    before: Callable[[], None]
    begin: float
    temporary: Path = Path()  # made by rank 0


class Store:
    """Saves of one run; see the module docstring. Every method is collective and called from the
    main thread."""

    def __init__(
        self,
        run: Path,
        config: CheckpointConfig,
        check_owner: Callable[[], None] | None = None,
        timeout_seconds: float = 1800.0,
    ) -> None:
        """check_owner: raises where another process has taken over the run folder."""
        self.run, self.config = run, config
        self._owner = check_owner
        self._group = dist.new_group(timeout_seconds)
        self._stages = {FULL: Stage(), WEIGHTS: Stage()}
        self._thread: threading.Thread | None = None
        self.ended: list[Saved] = []  # a save may have ended on one rank a moment before another

    def check_owner(self) -> None:
        """Raises RunFolderError, on every rank, where another process has taken over the folder:
        nothing more may be written there."""
        if self._owner is not None:
            dist.run_on_main(self._owner)

    def check_room(self, sets: LocalSets) -> None:
        """Raises DiskSpaceError unless there is room for the checkpoints of these sets that are
        kept (keep_last, keep_best) and the one being written, less those that exist already."""
        size = sum(dist.gather_objects(stored_bytes(sets)))
        there = len(dist.run_on_main(lambda: committed(self.run / CHECKPOINTS)))
        count = max(1, self.config.keep_last + self.config.keep_best + 1 - there)
        files = count * (dist.world_size() + 2)
        quota, what = self.config.quota_command, f"{count} checkpoints of {size_text(size)}"
        folder = self.run / CHECKPOINTS
        dist.run_on_main(lambda: check_space(folder, count * size, files, quota, what))

    def save(
        self,
        kind: str,
        iteration: int,
        sets: LocalSets,
        document: Mapping[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Copies the sets and writes them, in the background if so configured; waits for the
        previous save. The result is appended to `ended`.

        kind: FULL or WEIGHTS. before: called on rank 0 before anything is written; its OSError
        fails the save."""
        self.wait()
        begin = time.perf_counter()
        parent = self.run / (CHECKPOINTS if kind == FULL else TRAJECTORY)
        pieces = self._stages[kind].copy(sets) if self.config.background else shares(sets)
        shapes = {
            part: {name: place.shape for name, (place, _) in tensors.items()}
            for part, tensors in sets.items()
        }
        folder = parent / folder_name(iteration)
        job = _Job(kind, iteration, folder, shapes, pieces, document, before, begin)
        # A daemon: a second Ctrl-C must not wait for it.
        self._thread = threading.Thread(
            target=self._carry_out, args=(job,), name="checkpoint", daemon=True
        )
        self._thread.start()
        if not self.config.background:
            self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Waits for the save under way, if there is one; then `ended` is the same on every rank.
        seconds: the longest wait of a process that will do nothing more."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._thread = None

    def _carry_out(self, job: _Job) -> None:
        error, is_final = None, False
        try:
            self._write_and_commit(job)
        except Exception as caught:
            # Any exception: if the thread died silently, the other ranks would wait and the run
            # would count as saved. Errors other than a reported failure are a lost run folder or a
            # broken collective, whose group cannot be used again.
            error = str(caught) or repr(caught)
            is_final = not isinstance(caught, CheckpointError | DiskSpaceError | ConfigError)
            log.error("checkpoint %s was not written: %s", job.folder.name, error)
        seconds = time.perf_counter() - job.begin
        self.ended.append(Saved(job.kind, job.iteration, seconds, error, is_final))

    def _write_and_commit(self, job: _Job) -> None:
        """Steps 1 to 5. Raises the same error on every rank."""
        mine = sum(piece.header.bytes for piece in job.pieces)
        needed = sum(dist.gather_objects(mine, self._group))
        made = dist.run_on_main(lambda: self._make_room(job, needed), self._group)
        job = replace(job, temporary=made)
        parts = dist.gather_objects(self._write_part(job), self._group, to_main=True)
        dist.run_on_main(lambda: self._commit(job, parts), self._group)

    def _make_room(self, job: _Job, needed: int) -> Path:
        """A new folder for the files of a save, on rank 0 alone."""
        self._check_alone()
        files = dist.world_size() + 2
        quota, what = self.config.quota_command, f"checkpoint {job.folder.name}"
        check_space(job.folder.parent, needed, files, quota, what)
        try:
            job.before()
            for left in job.folder.parent.glob(f"{job.folder.name}*.tmp"):
                remove_folder(left)  # by a failed save
            made = temporary_beside(job.folder)
            os.makedirs(made)
        except OSError as error:
            raise CheckpointError(f"rank 0: {error}") from error
        return made

    def _check_alone(self) -> None:
        """As `check_owner`, on rank 0 alone."""
        if self._owner is not None:
            self._owner()

    def _write_part(self, job: _Job) -> _Written:
        if not job.pieces:
            return _Written()
        try:
            # Rank 0 made it, but a client of a shared filesystem may not see it yet.
            os.makedirs(job.temporary, exist_ok=True)
            stem = f"rank-{dist.rank():03d}"
            parts = parted(job.pieces)
            names = (
                [f"{stem}.safetensors"]
                if len(parts) == 1
                else [f"{stem}-{number}.safetensors" for number in range(len(parts))]
            )
            with ThreadPoolExecutor(len(parts), "checkpoint") as threads:
                paths = [job.temporary / name for name in names]
                files = list(threads.map(_write_file, paths, parts))
            sync_folder(job.temporary)
        except Exception as error:
            # The other ranks wait for this answer, also after an unexpected error.
            return _Written(error=str(error) or repr(error))
        stated = [[(p.set_name, p.name, p.start, p.stop) for p in part] for part in parts]
        return _Written(list(zip(files, stated, strict=True)))

    def _commit(self, job: _Job, parts: Sequence[_Written]) -> None:
        """The end of step 3, and steps 4 and 5, on rank 0 alone."""
        failures = [f"rank {r}: {part.error}" for r, part in enumerate(parts) if part.error]
        if failures:
            _discard(job.temporary)
            raise CheckpointError("; ".join(failures))
        try:
            manifest = _assemble(job, parts)
            check_tiling(manifest.sets, job.temporary)
            self._check_alone()
            write_durably(job.temporary / MANIFEST, manifest.to_text().encode())
            sync_folder(job.temporary)
            with _replacing(job.folder):
                os.rename(job.temporary, job.folder)
            sync_folder(job.folder.parent)
        except OSError as error:
            _discard(job.temporary)
            raise CheckpointError(f"rank 0: {error}") from error
        except AdrpoError:
            _discard(job.temporary)
            raise
        size = size_text(sum(file.bytes for file in manifest.files))
        seconds = time.perf_counter() - job.begin
        log.info("checkpoint %s committed: %s in %.1f s", job.folder.name, size, seconds)
        try:
            self._note_first(job)
            self._remove_old(job)
        except (OSError, ValueError) as error:
            # They are removed after the next commit; this one stands.
            log.warning("old checkpoints could not be removed: %s", error)

    def _note_first(self, job: _Job) -> None:
        """Notes outside `checkpoints/` that there is one: a start that finds that folder gone must
        not begin anew."""
        if job.kind == FULL and not os.path.lexists(self.run / FIRST_COMMIT):
            replace_json(self.run / FIRST_COMMIT, {"iteration": job.iteration})

    def _remove_old(self, job: _Job) -> None:
        if job.kind != FULL:
            return
        there = committed(self.run / CHECKPOINTS)
        stay = kept(list(there), read_values(self.run / "eval.jsonl", self.config), self.config)
        for iteration in there.keys() - stay:
            # A half-removed folder must not look like a broken checkpoint.
            trash = there[iteration].with_suffix(".trash")
            remove_folder(trash)
            os.rename(there[iteration], trash)
            remove_folder(trash)
        for broken in (self.run / CHECKPOINTS).glob(f"*{SET_ASIDE}"):
            remove_folder(broken)


def _discard(folder: Path) -> None:
    """Removes the folder of a failed save; if that fails too, the next start removes it."""
    try:
        remove_folder(folder)
    except OSError as error:
        log.warning("%s could not be removed: %s", folder, error)


@contextmanager
def _replacing(folder: Path) -> Iterator[None]:
    """Moves an existing `folder` aside inside the block, so that it can be made again: a run that
    resumed from an earlier checkpoint writes its trajectory again. A kill inside the block leaves
    one of the two."""
    old = folder.with_suffix(REPLACED)
    is_there = os.path.lexists(folder)
    if is_there:
        remove_folder(old)
        os.rename(folder, old)
    yield
    if is_there:
        remove_folder(old)


def _write_file(path: Path, pieces: Sequence[StagedPiece]) -> FileFacts:
    with TensorFileWriter(path, [piece.header for piece in pieces]) as file:
        for piece in pieces:
            file.write(piece.values)
        return file.finish()


def _assemble(job: _Job, parts: Sequence[_Written]) -> Manifest:
    """The manifest of all ranks' files; a tensor that no rank wrote is in it without pieces."""
    pieces: dict[tuple[str, str], list[Piece]] = {}
    written = [file for part in parts for file in part.files]
    for facts, stated in written:
        for part, name, start, stop in stated:
            pieces.setdefault((part, name), []).append(Piece(start, stop, facts.name))
    sets = {
        part: {
            name: StoredTensor(
                shape, tuple(sorted(pieces.get((part, name), ()), key=lambda piece: piece.start))
            )
            for name, shape in shapes.items()
        }
        for part, shapes in job.shapes.items()
    }
    files = tuple(facts for facts, _ in written)
    return Manifest(job.kind, job.iteration, files, sets, job.document)
