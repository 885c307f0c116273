"""The record of a sweep, `$ADRPO_RUNS/.sweeps/NAME/`: which element has which settings, for good.

    elements.json     each element's config, settings and run folder, written by the first start
    errors/NN.json    the end of element NN's last start, where it failed before its run folder
                      could say so
    logs/NN.txt       what element NN printed, where `sweep --run` started it

An element that changed its settings would train on in another run's place in every table, so a
file that no longer says what is recorded is refused, with the difference. No module here imports
torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError, RunFolderError
from adrpo_scale.core.files import replace_json, temporary_beside, write_durably
from adrpo_scale.core.json_files import read_object
from adrpo_scale.core.lock_file import create
from adrpo_scale.run.sweep import Element, Sweep, value_text

_LISTED = 8  # differences in an error


@dataclass(frozen=True)
class Planned:
    """An element as it is recorded. run: name of its folder. iterations: those it is to have."""

    base: str
    settings: Mapping[str, Any]
    run: str
    iterations: int


@dataclass(frozen=True)
class Recorded:
    """elements: in order. identities: of each config the settings that change learning, by dotted
    key, as its first element has them."""

    elements: Sequence[Planned]
    identities: Mapping[str, Mapping[str, Any]]


def runs_folder() -> Path:
    return Path(os.environ.get("ADRPO_RUNS", "runs"))


def folder_of(sweep: Sweep) -> Path:
    return runs_folder() / ".sweeps" / sweep.name


def read_record(sweep: Sweep) -> Recorded | None:
    """The record of a sweep that has begun; None before. Raises ConfigError where the file says
    other elements than the record, RunFolderError for a record that cannot be read."""
    path = folder_of(sweep) / "elements.json"
    if not path.exists():
        return None
    found = read_object(path)
    try:
        record = _parsed(found or {})
    except (KeyError, TypeError) as error:
        raise RunFolderError(
            f"{path} cannot be read ({error!r}): restore it, or remove it, and the next start "
            "writes it again"
        ) from None
    _refuse_changes(sweep, [_described(one.base, one.settings) for one in record.elements])
    return record


def keep_record(sweep: Sweep, record: Recorded) -> None:
    """Writes the record, unless one is there, also where several starts do it at once. Raises
    ConfigError where it is there with other elements or runs, RunFolderError where it cannot be
    written."""
    folder = folder_of(sweep)
    path = folder / "elements.json"
    elements = [vars(one) for one in record.elements]
    document = {"version": 1, "elements": elements, "identities": record.identities}
    temporary = temporary_beside(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(temporary, (json.dumps(document, indent=1) + "\n").encode())
        create(path, temporary)
    except OSError as error:
        raise RunFolderError(
            f"{folder} cannot be written ({error.strerror}); set ADRPO_RUNS to a folder that can"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    there = read_record(sweep)
    if there is not None:
        refuse_other_runs(sweep, there, record)


def refuse_other_runs(sweep: Sweep, there: Recorded, record: Recorded) -> None:
    """Raises ConfigError where elements have other runs than recorded: their config has changed."""
    pairs = zip(sweep.elements, there.elements, record.elements, strict=True)
    changed = [(e, old, new) for e, old, new in pairs if old.run != new.run]
    if not changed:
        return
    base = changed[0][0].base
    before, now = (dict(one.identities.get(base, {})) for one in (there, record))
    keys = [k for k in dict.fromkeys([*before, *now]) if before.get(k) != now.get(k)]
    lines = [f"{base}: {key}: {_shown(before, key)} → {_shown(now, key)}" for key in keys]
    lines += [f"{e}: run {old.run} → {new.run}" for e, old, new in changed]
    raise _refusal(sweep, lines)


def _parsed(document: Mapping[str, Any]) -> Recorded:
    names = ("base", "settings", "run", "iterations")
    elements = [Planned(*(one[name] for name in names)) for one in document["elements"]]
    return Recorded(elements, document["identities"])


def _refuse_changes(sweep: Sweep, before: Sequence[str]) -> None:
    now = [_described(element.base, element.settings) for element in sweep.elements]
    lines = [
        f"#{number}: {old} → {new}"
        for number, (old, new) in enumerate(zip(before, now, strict=False))
        if old != new
    ]
    lines += [f"#{number} is new: {now[number]}" for number in range(len(before), len(now))]
    lines += [f"#{number} is gone: {before[number]}" for number in range(len(now), len(before))]
    if lines:
        raise _refusal(sweep, lines)


def _described(base: str, settings: Mapping[str, Any]) -> str:
    return " ".join([base, *(f"{k}={value_text(v)}" for k, v in settings.items())])


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(not there)"


def _refusal(sweep: Sweep, lines: Sequence[str]) -> ConfigError:
    more = [f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    listed = "".join(f"\n    {line}" for line in [*lines[:_LISTED], *more])
    return ConfigError(
        f"the sweep {sweep.name} has begun with other settings than {sweep.file} gives now:"
        f"{listed}\nSet them back, or give the file another name: that is another sweep, and runs "
        "whose folders have the same name are done already"
    )


# ---- starts that failed early --------------------------------------------------------------------


def note_error(sweep: Sweep, element: Element, code: int, text: str) -> None:
    """Records the end of a start that a run's folder may know nothing of."""
    path = _error_path(sweep, element)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_json(path, {"at": time.time(), "exit_code": code, "error": text})


def forget_error(sweep: Sweep, element: Element) -> None:
    with suppress(OSError):
        _error_path(sweep, element).unlink()


def error_of(sweep: Sweep, element: Element) -> tuple[float, int, str] | None:
    """(time, exit code, text) of a start that failed; None where none is recorded."""
    found = read_object(_error_path(sweep, element)) or {}
    at, code, text = (found.get(name) for name in ("at", "exit_code", "error"))
    if not isinstance(at, int | float) or not isinstance(code, int):
        return None
    return float(at), code, str(text)


def _error_path(sweep: Sweep, element: Element) -> Path:
    return folder_of(sweep) / "errors" / f"{element.number:02d}.json"
