"""Reading of a run's config file: TOML, `--set section.key=value`, and error messages.

`load_config` checks types, unknown keys and contradictions, and records the source of each value.
No model is loaded.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.printable import shown
from adrpo_scale.core.python_warnings import SettingsWarning
from adrpo_scale.core.settings import Leaf, Section, leaves, notes_of
from adrpo_scale.core.toml_text import DEEPEST, check_values, read_toml
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.file_kinds import require_kind
from adrpo_scale.run.override_values import value_of
from adrpo_scale.run.sections import current_key, modern, section_at

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class LoadedConfig:
    """A config, its name, and the source of each given value: dotted path → file or --set."""

    name: str
    config: RunConfig
    given: Mapping[str, str]

    def source(self, leaf: Leaf) -> str:
        """file, --set or default; with the place in the paper where the value is the paper's."""
        given, paper = self.given.get(leaf.path, "default"), notes_of(leaf.info).get("paper")
        return f"{given}: paper, {paper}" if paper and leaf.value == leaf.info.default else given


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Reads and checks a TOML file. overrides: "section.key=value", see `override_values`. Raises
    ConfigError, which lists all faults."""
    data = read_toml(path, "see configs/ for the shipped ones")
    require_kind(path, data, "run")
    data, renamed = modern(data)
    given = {leaf: "file" for leaf, _ in leaves(data)}
    for key, value, old in _set_all(data, overrides):
        given |= {f"{key}.{leaf}" if leaf else key: "--set" for leaf, _ in leaves(value)}
        renamed |= old
    warn_of_old(renamed)
    return LoadedConfig(path.stem, parse_config(data), given)


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """RunConfig from plain data, whose keys may have old names, as in a checkpoint's settings.

    Raises ConfigError, one line per fault.
    """
    return parsed(RunConfig, data)


def parsed(kind: type[S], data: Mapping[str, Any]) -> S:
    """A config of the class `kind` from plain data, as in `parse_config`."""
    data, _ = modern(data)
    return checked(kind, data)


def checked(kind: type[S], data: Mapping[str, Any]) -> S:
    """A config of the class `kind` from plain data with names of today. Raises ConfigError, one
    line per fault."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = [_fault(kind, detail, data) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def parse_override(text: str) -> tuple[str, Any]:
    """("section.key", value) from "section.key=value". ConfigError for any other form."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {shown(text)}: expected section.key=value, e.g. optimizer.updates=2"
        )
    key, value = key.strip(), value_of(raw)
    inside: Any = value
    for part in reversed(key.split(".")[-DEEPEST - 1 :]):  # the data that it makes
        inside = {part: inside}
    check_values(inside, "--set ")
    return key, value


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets data[a][b][...] for key "a.b..."; list items by number. `null` removes the key.

    Raises ConfigError where the key leads into a value, or to an item that is not there.
    """
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, key)]
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(
                f"--set {key}: {parent} is a value, not a section; give section.key=value"
            )
    if isinstance(place, list):
        number = _index(place, last, key)
        if value == "null":
            raise ConfigError(
                f"--set {key}=null: null removes a key, and {key} is an item of a list: give the "
                f"list whole, as in --set '{'.'.join(parents)}=[...]'"
            )
        place[number] = value
    elif value == "null":  # TOML has no null, and --set must be able to remove a section
        place.pop(last, None)
    else:
        place[last] = value


def overridden(config: S, overrides: Sequence[str]) -> S:
    """The config after further `--set` arguments."""
    data = config.model_dump(mode="json")
    renamed: dict[str, str] = {}
    for _, _, old in _set_all(data, overrides):
        renamed |= old
    warn_of_old(renamed)
    return parsed(type(config), data)


def changed(config: S, values: Iterable[tuple[str, Any]]) -> S:
    """The config with new values, by dotted keys."""
    data = config.model_dump(mode="json")
    for key, value in values:
        assign(data, key, value)
    return parsed(type(config), data)


def _set_all(
    data: dict[str, Any], overrides: Sequence[str]
) -> list[tuple[str, Any, dict[str, str]]]:
    """`_set` of each. Raises ConfigError, which lists all faults."""
    done, faults = [], []
    for override in overrides:
        try:
            done.append(_set(data, override))
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return done


def _set(data: dict[str, Any], override: str) -> tuple[str, Any, dict[str, str]]:
    """Applies one `--set`; returns (current key, value, {old key: current key} where renamed)."""
    given, value = parse_override(override)
    key = current_key(given, data)
    assign(data, key, value)
    return key, value, {} if key == given else {given: key}


def warn_of_old(renamed: Mapping[str, str]) -> None:
    """Warns once of all keys with old names. renamed: current key by old key."""
    if renamed:
        listed = ", ".join(f"{old} is now {new}" for old, new in renamed.items())
        warnings.warn(
            f"keys by old names, which still mean the same: {listed}",
            category=SettingsWarning,
            stacklevel=3,
        )


def _index(items: list[Any], text: str, key: str) -> int:
    number = natural(text)
    if number is None or number >= len(items):
        raise ConfigError(f"--set {key}: {text!r} should be a number from 0 to {len(items) - 1}")
    return number


def _fault(kind: type[Section], detail: Any, data: Any) -> str:
    """One line: the key, the fault and the expectation."""
    location = list(detail["loc"])
    fault = detail["type"]
    where = ".".join(map(str, location))
    if fault == "extra_forbidden":
        known = sorted(section_at(data, location[:-1], kind).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key; {hint}known here: {', '.join(known)}"
    if fault == "missing":
        return f"{where}: is required and was not given"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if fault == "component":
        return f"{where}: {message}"
    if fault == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {shown(detail['input'])}: {message}"
