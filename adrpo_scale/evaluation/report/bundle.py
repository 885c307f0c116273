"""A bundle: everything that a report is made from, in one tar file, without weights.

    bundle.json              the runs in their order, and each folder's path and settings
    folders/000/NAME/…       what is kept of a folder, by `kept_files`
    locks/prefetch.lock      revisions and licences of models and datasets, where there is a lock
    MANIFEST                 a line a file: sha256, bytes, path

The same folders give the same bytes: members in order, without times, owners and permissions.
`unbundle` reads it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.files import open_new, temporary_beside
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.printable import shown
from adrpo_scale.core.secrets import masked
from adrpo_scale.evaluation.report.bundle_names import (
    ENDING,
    FORMAT,
    INDEX,
    MANIFEST,
    MOST,
    lock_place,
    manifest_line,
    path_fault,
)
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.given import Given
from adrpo_scale.evaluation.report.kept_files import Kept, kept_files, recorded_completions
from adrpo_scale.evaluation.row_folder import IDENTITY

PICTURES = 8  # of a row


def write_bundle(to: Path, given: Given, *, pictures: int = PICTURES) -> tuple[int, int]:
    """Writes the bundle of what `report` was given, in one step. pictures: of each row, at most.
    Returns the numbers of files and of bytes. Raises ConfigError for a name that no bundle can
    have, and where nothing can be written."""
    if to.suffix != ENDING:
        raise ConfigError(f"--bundle {shown(str(to))}: expected a name that ends in {ENDING}")
    runs = given.runs
    places = _places(runs)
    index = {
        "format": FORMAT,
        "adrpo_scale": importlib.metadata.version("adrpo_scale"),
        "line": given.line,
        "runs": [
            {"folder": places[run.folder], "at": _at(run), "weights": run.weights} for run in runs
        ],
        "folders": {places[run.folder]: _facts(run, places) for run in runs},
        "tried": list(given.tried),
    }
    text = json.dumps(index, indent=1, ensure_ascii=True) + "\n"
    files: dict[str, Kept | bytes] = {INDEX: masked(text).encode()}
    for top, place in _tops(runs).items():
        files |= {f"{place}/{kept.place}": kept for kept in kept_files(top, pictures)}
    grids, completions = _grids(runs), _completions(runs)
    for folder, place in places.items():
        shown_at = (grids.get(folder, ()), completions.get(folder, ()))
        files |= {f"{place}/{kept.place}": kept for kept in kept_files(folder, pictures, *shown_at)}
    for number, lock in enumerate(given.locks):
        files[lock_place(number)] = Kept("", lock, is_record=True)
    for path in files:
        _check_name(path)
    if len(files) > MOST:
        raise ConfigError(f"--bundle: {len(files)} files; a bundle has at most {MOST}")
    return _write(to, files)


def _facts(run: Evaluated, places: Mapping[Path, str]) -> dict[str, Any]:
    origin = {} if run.origin is None else {"origin": places[run.origin]}
    return {"path": run.path, "settings": dict(run.settings), **origin}


def _at(run: Evaluated) -> str:
    return "" if run.which is None else f"@{run.which}"


def _grids(runs: Sequence[Evaluated]) -> dict[Path, list[int]]:
    """The iterations whose grids figures show of each run: before training, and the last."""
    found: dict[Path, set[int]] = {}
    for run in runs:
        last = max((row["iteration"] for row in run.rows), default=0)
        at = run.which if isinstance(run.which, int) else last
        found.setdefault(run.folder, {0}).add(at)
    return {folder: sorted(iterations) for folder, iterations in found.items()}


def _completions(runs: Sequence[Evaluated]) -> dict[Path, list[int]]:
    """The iterations whose completions are compared: the newest one, and the newest of all runs."""
    kept = {run.folder: recorded_completions(run.folder) for run in runs if not run.is_benchmark}
    kept = {folder: iterations for folder, iterations in kept.items() if iterations}
    common = sorted(set.intersection(*kept.values())) if kept else []
    return {folder: sorted({max(own), *common[-1:]}) for folder, own in kept.items()}


# ---- places --------------------------------------------------------------------------------------


def _top(folder: Path) -> tuple[Path, str]:
    """(folder, place below it) of a folder: a judged run lies in its run, a row in its evaluation,
    and what reads one may look at what lies around it."""
    run = folder.resolve().parent
    if (folder / IDENTITY).is_file() and (run / "config.json").is_file():
        return run, folder.name
    evaluation = folder.resolve().parent.parent
    if (folder / IDENTITY).is_file() and (evaluation / IDENTITY).is_file():
        return evaluation, f"{folder.resolve().parent.name}/{folder.name}"
    return folder, ""


def _tops(runs: Sequence[Evaluated]) -> dict[Path, str]:
    origins = [run.origin for run in runs if run.origin is not None]
    tops = dict.fromkeys([*(_top(run.folder)[0] for run in runs), *origins])
    return {top: f"folders/{number:03d}/{_name(top)}" for number, top in enumerate(tops)}


def _places(runs: Sequence[Evaluated]) -> dict[Path, str]:
    """Folder → its place in the bundle."""
    tops = _tops(runs)
    found = {run.origin: tops[run.origin] for run in runs if run.origin is not None}
    for run in runs:
        top, below = _top(run.folder)
        found[run.folder] = f"{tops[top]}/{below}".rstrip("/")
    return found


def _name(folder: Path) -> str:
    if folder.name in ("", "..") or folder.name != Path(os.path.normpath(folder)).name:
        raise ConfigError(
            f"--bundle of {shown(str(folder))}: its name is part of the tables; name the folder by "
            f"it, e.g. {folder.resolve()}"
        )
    return folder.name


def _check_name(path: str) -> None:
    """Raises ConfigError for a path that `unbundle` would refuse, or other systems."""
    fault = path_fault(path)
    if fault:
        raise ConfigError(f"--bundle: {shown(path)} {fault}; rename the folder or file")


# ---- the file ------------------------------------------------------------------------------------


def _write(to: Path, files: Mapping[str, Kept | bytes]) -> tuple[int, int]:
    make_output_folder(to.parent)
    temporary = temporary_beside(to)
    try:
        with os.fdopen(open_new(temporary), "wb") as out:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
                lines = [*_members(tar, files)]
                _add(tar, MANIFEST, "".join(lines).encode())
            size = out.tell()
        os.rename(temporary, to)
    except OSError as error:
        raise ConfigError(
            f"--bundle {to} cannot be written ({error}); choose another file"
        ) from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)
    return len(lines) + 1, size


def _members(tar: tarfile.TarFile, files: Mapping[str, Kept | bytes]) -> Iterator[str]:
    """Adds every file; yields the line of each in MANIFEST."""
    for path in sorted(files):
        kept = files[path]
        try:
            content = kept if isinstance(kept, bytes) else kept.content()
        except FileNotFoundError:
            continue  # of a checkpoint that a living run has removed meanwhile
        _add(tar, path, content)
        yield manifest_line(hashlib.sha256(content).hexdigest(), len(content), path)


def _add(tar: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size, member.mtime, member.mode = len(content), 0, 0o644
    tar.addfile(member, io.BytesIO(content))
