"""Files that an export copies from its base: configs, tokenizers, licences, other components."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from adrpo_scale.core.errors import ExportError
from adrpo_scale.export.base import Copy, last_name
from adrpo_scale.hub.foreign import damaged
from adrpo_scale.hub.inside import is_inside, real_file

LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_CONTENT = {"tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json"}


def copy_of(path: Path, base: Path) -> Copy:
    """The copy of a file in the base's folder. Raises ModelNotFoundError where it is elsewhere."""
    return Copy(real_file(path, base), path.relative_to(base).as_posix())


def licence_files(base: Path) -> list[Copy]:
    """The base's licence files: an export is a derivative, so it must carry them."""
    paths = sorted(path for path in base.iterdir() if path.name.upper().startswith(LICENCES))
    return [copy_of(path, base) for path in paths if path.is_file()]


def bytes_of(copies: list[Copy]) -> int:
    return sum(copy.source.stat().st_size for copy in copies)


def write_copies(copies: list[Copy], texts: Mapping[str, str], folder: Path, link: bool) -> None:
    """Writes the texts, then copies the other files; link: hard-links them where that is possible.
    Absolute paths in JSON files are cut to their last part. Raises ExportError where a name leads
    out of the folder."""
    for name, text in texts.items():
        _place_in(folder, name).write_text(text)
    for copy in copies:
        if copy.name in texts:
            continue
        to = _place_in(folder, copy.name)
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".json" and to.name not in _CONTENT:
            content = _json_of(copy.source)
            clean = without_paths(content)
            if clean != content:
                to.write_text(json_text(clean))
                continue
        _place(copy.source, to, link)


def _place_in(folder: Path, name: str) -> Path:
    """The file of that name in the export's folder. Raises ExportError where it is elsewhere."""
    to = folder / name
    if not is_inside(name) or not to.resolve().is_relative_to(folder.resolve()):
        raise ExportError(f"{name!r} lies outside of the export's folder and is not written")
    return to


def _json_of(path: Path) -> Any:
    """The content of a JSON file; raises DamagedFileError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error) from error


def _place(source: Path, to: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, to)
            return
        except OSError:
            pass  # source and target are on different filesystems
    shutil.copyfile(source, to)


def without_paths(value: Any) -> Any:
    """A JSON value with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return last_name(value) if isinstance(value, str) and is_path(value) else value


def is_path(text: str) -> bool:
    """True for a path that reveals facts about the machine: absolute, or relative to home or
    `..`."""
    if len(text) > 4096 or "\n" in text or "://" in text:
        return False
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    absolute = posix.is_absolute() and len(posix.parts) > 2
    return absolute or text.startswith(("~/", "../")) or bool(windows.drive and windows.root)


def json_text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"
