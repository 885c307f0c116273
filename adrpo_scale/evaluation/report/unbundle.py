"""A bundle read back, as a file of somebody else: nothing in it is trusted.

It is unpacked into a new folder of its own. Only plain files under safe names are taken, each with
the size and hash that its MANIFEST says; anything else is one error, and nothing is written
elsewhere. A bundle is not compressed, so what it holds is no larger than itself.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import AdrpoError, ConfigError
from adrpo_scale.core.files import open_new, write_all
from adrpo_scale.core.json_files import parse_object, read_regular
from adrpo_scale.core.printable import shown
from adrpo_scale.evaluation.report.bundle_names import (
    FORMAT,
    INDEX,
    LOCK,
    MANIFEST,
    MOST,
    path_fault,
)
from adrpo_scale.evaluation.report.evaluated import Evaluated, read_runs

_LINE = re.compile(r"([0-9a-f]{64}) (\d{1,18}) (.+)")
_AT = re.compile(r"(@(\d{1,18}|last))?")
_NAMED = 6  # files in an error
_CHUNK = 1 << 20
_REMEDY = "copy it again, or make it again with `adrpo-scale report … --bundle`"


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds. runs: in their order. line: about a sweep. tried: runs that are not
    shown. locks: files that pin models and datasets."""

    runs: tuple[Evaluated, ...]
    line: str = ""
    tried: tuple[Mapping[str, Any], ...] = ()
    locks: tuple[Path, ...] = ()


def is_bundle(path: Path) -> bool:
    """Whether a name that `report` is given is that of a bundle: runs are folders."""
    return path.is_file()


def read_bundle(path: Path, to: Path, weights: str | None = None) -> Bundle:
    """Unpacks a bundle into the empty folder `to` and reads its runs. weights: a word of
    `named.WEIGHTS`; None for those that the bundle was made with. Raises ConfigError for a file
    that is no bundle, is damaged or is dangerous."""
    try:
        files = _unpack(path, to)
        _compare(path, to, files)
        return _read(to, weights)
    except (tarfile.TarError, OSError, ValueError, RecursionError, EOFError) as error:
        raise _refusal(path, str(error) or type(error).__name__) from error
    except AdrpoError as error:
        text = str(error).replace(f"{to}/", f"{path}: ")
        raise ConfigError(text) from error


class _Fault(ValueError):
    """Why a file is no bundle."""


def _refusal(path: Path, why: str) -> ConfigError:
    why = why.replace("\n", " ")[:2000]
    return ConfigError(f"{path} is no bundle that can be read: {why}; {_REMEDY}")


# ---- unpacking -----------------------------------------------------------------------------------


def _unpack(path: Path, to: Path) -> dict[str, tuple[int, str]]:
    """Path → (bytes, sha256) of every file that was unpacked."""
    found: dict[str, tuple[int, str]] = {}
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            _check(member, found)
            found[member.name] = _take(tar, member, to)
    return found


def _check(member: tarfile.TarInfo, found: Mapping[str, Any]) -> None:
    name = shown(member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        raise _Fault(f"{name} is no plain file")
    fault = path_fault(member.name)
    if fault:
        raise _Fault(f"{name} {fault}")
    if member.name in found:
        raise _Fault(f"{name} is there twice")
    if len(found) >= MOST:
        raise _Fault(f"it has more than {MOST} files")
    if member.name not in (INDEX, MANIFEST) and not member.name.startswith(("folders/", LOCK)):
        raise _Fault(f"{name} is no file of a bundle")


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> tuple[int, str]:
    """Writes one file and returns its size and hash."""
    target = to / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    digest, size = hashlib.sha256(), 0
    if source is None:
        raise _Fault(f"{shown(member.name)} is no plain file")
    with open(open_new(target), "wb", buffering=0) as out:
        while chunk := source.read(_CHUNK):
            write_all(out.fileno(), chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != member.size:
        raise _Fault(f"{shown(member.name)} ends early; the file was cut")
    return size, digest.hexdigest()


def _compare(path: Path, to: Path, files: Mapping[str, tuple[int, str]]) -> None:
    """Raises _Fault, which names them, where files are not those that MANIFEST lists."""
    if MANIFEST not in files:
        raise _Fault(f"it has no {MANIFEST}, which is its last file; it was cut, or is another tar")
    listed: dict[str, tuple[int, str]] = {}
    for text in read_regular(to / MANIFEST).decode().split("\n")[:-1]:
        line = _LINE.fullmatch(text)
        if line is None:
            raise _Fault(f"a line of {MANIFEST} is not `sha256 bytes path`: {shown(text)}")
        listed[line[3]] = int(line[2]), line[1]
    there = {name: facts for name, facts in files.items() if name != MANIFEST}
    faults = [f"{shown(name)} is missing" for name in listed if name not in there]
    faults += [f"{shown(name)} is not listed in {MANIFEST}" for name in there if name not in listed]
    for name in sorted({*listed} & {*there}):
        if listed[name] != there[name]:
            stated, found = listed[name][1], there[name][1]
            faults.append(f"{shown(name)} has sha256 {found[:12]}…, {MANIFEST} says {stated[:12]}…")
    if faults:
        more = f"; and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
        raise _Fault("; ".join(faults[:_NAMED]) + more)


# ---- reading -------------------------------------------------------------------------------------


def _read(to: Path, weights: str | None) -> Bundle:
    index = parse_object(read_regular(to / INDEX))
    if index.get("format") != FORMAT:
        raise _Fault(f"its format is {shown(index.get('format'))}, this version reads {FORMAT}")
    folders = _object(index.get("folders"))
    runs = [*_runs(_list(index.get("runs")), folders, to, weights)]
    line, locks = index.get("line"), (to / LOCK).parent.glob("*")
    return Bundle(
        tuple(runs),
        line if isinstance(line, str) else "",
        tuple(_object(one) for one in _list(index.get("tried"))),
        tuple(sorted(locks)),
    )


def _runs(
    stated: Sequence[Any], folders: Mapping[str, Any], to: Path, weights: str | None
) -> Iterator[Evaluated]:
    for one in map(_object, stated):
        place, at, word = (_text(one.get(name)) for name in ("folder", "at", "weights"))
        if place not in folders or not _AT.fullmatch(at):
            raise _Fault(f"{INDEX} names a run in another form: {shown(one)}")
        facts = _object(folders[place])
        path, settings = _text(facts.get("path")), _object(facts.get("settings"))
        origin = to / _safe(facts["origin"]) if "origin" in facts else None
        for run in read_runs(f"{to / _safe(place)}{at}", weights or word):
            yield replace(run, settings=settings, given=path, origin=origin)


def _safe(place: Any) -> str:
    """A folder of the bundle."""
    if path_fault(_text(place)) or not place.startswith("folders/"):
        raise _Fault(f"{INDEX} names a folder that is not in it: {shown(place)}")
    return str(place)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Fault(f"{INDEX} holds {shown(value)} where a text is expected")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f"{INDEX} holds {shown(value)} where an object is expected")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise _Fault(f"{INDEX} holds {shown(value)} where a list is expected")
    return value
