"""The folder of an export: `<to>.tmp` while it is written, `<to>` once it is verified, and
`<to>.unverified` where the verification did not succeed.

A folder that is not verified holds RECORD: what was exported and the hashes of its weights, so that
it can be checked again without another export.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from adrpo_scale.core.console import console
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.files import remove_folder, sync_file, sync_folder, write_new
from adrpo_scale.core.json_files import parse_object, read_regular
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.export.base import Written

UNFINISHED = ".unfinished-export"  # marks a temporary folder as ours, so that it may be removed
RECORD = "unverified-export.json"


def check_target(to: Path) -> None:
    """Raises ExportError where the target is in use, or a folder beside it is not an export's."""
    if os.path.lexists(to) and (to.is_symlink() or not to.is_dir() or any(to.iterdir())):
        raise ExportError(f"--to {to} exists; expected a new or empty folder: choose another --to")
    for folder, mark in ((_beside(to, "tmp"), UNFINISHED), (unverified(to), RECORD)):
        if os.path.lexists(folder) and (folder.is_symlink() or not (folder / mark).is_file()):
            raise ExportError(f"{folder} exists and is not left over from an export: remove it")


def _beside(to: Path, what: str) -> Path:
    return to.with_name(f"{to.name}.{what}")


def unverified(to: Path) -> Path:
    """The folder of an export whose verification did not succeed."""
    return _beside(to, "unverified")


@contextmanager
def temporary(to: Path) -> Iterator[Path]:
    """The folder `<to>.tmp`; what is left of it is removed afterwards, also after an error. An
    unverified export of the same target is removed first."""
    folder = _beside(to, "tmp")
    try:
        remove_folder(folder)
        remove_folder(unverified(to))
        folder.mkdir(parents=True)
        write_new(folder / UNFINISHED, b"")
        yield folder
    except (OSError, SafetensorError) as error:
        raise ExportError(f"the export was not written: {error}. {to} is unchanged") from error
    finally:
        remove_folder(folder)


def record(folder: Path, facts: Mapping[str, Any], written: Written) -> None:
    """Writes RECORD. facts: what was exported, as JSON."""
    files = {name: [each.name, each.bytes, each.sha256] for name, each in written.files.items()}
    counts = {"files": files, "trained": written.trained, "changed": written.changed}
    write_new(folder / RECORD, json.dumps({"facts": facts, **counts}).encode())


def recorded(to: Path, facts: Mapping[str, Any]) -> Written:
    """The weights of the unverified export. Raises ExportError where there is none, or it is of
    something else than `facts`."""
    path = unverified(to) / RECORD
    try:
        found = parse_object(read_regular(path))
        files = {name: FileFacts(*each) for name, each in found["files"].items()}
        written, before = Written(files, found["trained"], found["changed"]), dict(found["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"--recheck, but {unverified(to)} holds no unverified export ({error}): leave "
            "--recheck out to export"
        ) from error
    other = {name: (before.get(name), value) for name, value in facts.items()}
    differing = [f"{n}: {a} there, {b} asked" for n, (a, b) in other.items() if a != b]
    if differing:
        raise ExportError(
            f"--recheck, but {unverified(to)} is another export ({'; '.join(differing)}): give the "
            "arguments that it was exported with, or leave --recheck out"
        )
    return written


@contextmanager
def kept(folder: Path, to: Path) -> Iterator[None]:
    """A context of the verification. After an error, a signal or Ctrl-C in it, the export is kept
    as `<to>.unverified`, which is said."""
    place = unverified(to)
    hint = (
        f"The export is kept, unverified, as {place}; the same command with --recheck checks it "
        "again without another export"
    )
    try:
        yield
    except BaseException as error:
        if folder != place:
            (folder / UNFINISHED).unlink(missing_ok=True)
            os.replace(folder, place)
            sync_folder(place.parent)
        if isinstance(error, ExportError | OSError):
            raise ExportError(f"{error}\n{hint}") from error
        console.print(hint, highlight=False, soft_wrap=True)
        raise


def finish(folder: Path, to: Path) -> None:
    """Syncs the files and renames the folder to `to`: an export is whole or absent."""
    for mark in (UNFINISHED, RECORD):
        (folder / mark).unlink(missing_ok=True)
    for path in [*folder.rglob("*"), folder]:
        sync_file(path)
    os.replace(folder, to)
    sync_folder(to.parent)
