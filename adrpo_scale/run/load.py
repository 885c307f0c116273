"""A config file of a run, read: TOML, `--set section.key=value`, every fault in words.

`load_config` checks types, unknown keys and contradictions, and remembers where each value came
from. Nothing heavy is loaded here.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from adrpo_scale.core.components import OneOf
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import Section, leaves
from adrpo_scale.run.config import RunConfig


@dataclass(frozen=True)
class LoadedConfig:
    """A config, its name, and where each given value comes from: dotted path → file or --set."""

    name: str
    config: RunConfig
    given: Mapping[str, str]

    def source(self, path: str, value: Any, info: FieldInfo) -> str:
        """file, --set or default, and the place in the paper if the value is the paper's."""
        given, paper = self.given.get(path, "default"), paper_place(info)
        return f"{given}: paper, {paper}" if paper and value == info.default else given


def paper_place(info: FieldInfo) -> str | None:
    extra = info.json_schema_extra
    return str(extra["paper"]) if isinstance(extra, dict) and "paper" in extra else None


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Reads and checks a TOML file. overrides: "section.key=value", the value as in TOML (a bare
    word is a string). Raises ConfigError, listing every fault with its remedy."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"config {path} is not there; see configs/ for the shipped ones"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ConfigError(f"config {path} is not valid TOML: {error}") from error
    given = {leaf: "file" for leaf, _ in leaves(data)}
    for override in overrides:
        key, value = parse_override(override)
        assign(data, key, value)
        given |= {f"{key}.{leaf}" if leaf else key: "--set" for leaf, _ in leaves(value)}
    return LoadedConfig(path.stem, parse_config(data), given)


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """RunConfig from plain data; ConfigError, one line a fault, if it does not fit."""
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        faults = [_fault(detail, data) for detail in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(faults))) from error


def parse_override(text: str) -> tuple[str, Any]:
    """("section.key", value) from "section.key=value"."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: expected section.key=value, e.g. optimizer.updates=2")
    try:
        return key.strip(), tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), raw.strip()  # a bare word; quotes are awkward in a shell


def assign(data: dict[str, Any], key: str, value: Any) -> None:
    """Sets data[a][b][...] for key "a.b..."; list items by number; `null` removes the key."""
    *parents, last = key.split(".")
    place: Any = data
    for parent in parents:
        if isinstance(place, list):
            place = place[_index(place, parent, key)]
        else:
            place = place.setdefault(parent, {})
        if not isinstance(place, dict | list):
            raise ConfigError(f"--set {key}: {parent} is a value, not a section")
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    elif value == "null":  # TOML has no null, and a section must be removable from the shell
        place.pop(last, None)
    else:
        place[last] = value


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The config with further `--set`s."""
    data = config.resolved()
    for override in overrides:
        assign(data, *parse_override(override))
    return parse_config(data)


def _index(items: list[Any], text: str, key: str) -> int:
    if not text.isdigit() or int(text) >= len(items):
        raise ConfigError(f"--set {key}: {text!r} should be a number from 0 to {len(items) - 1}")
    return int(text)


def _fault(detail: Any, data: Any) -> str:
    """One line: which key, what was wrong, what is expected."""
    location = list(detail["loc"])
    kind = detail["type"]
    where = ".".join(map(str, location))
    if kind == "extra_forbidden":
        known = sorted(section_at(data, location[:-1]).model_fields)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key; {hint}known here: {', '.join(known)}"
    if kind == "missing":
        return f"{where}: is required and was not given"
    message = str(detail["msg"]).removeprefix("Value error, ")
    if kind == "component":
        return f"{where}: {message}"
    if kind == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} = {detail['input']!r}: {message}"


def section_at(data: Any, location: Sequence[Any]) -> type[Section]:
    """The config class of the section at a path of keys and numbers in a file's data, which may
    have any other fault."""
    model: type[Section] = RunConfig
    field: FieldInfo | None = None
    for part in location:
        data = data.get(part, {}) if isinstance(data, Mapping) else data[part]
        field = model.model_fields[part] if isinstance(part, str) else field
        model = class_of(field, data) or model
    return model


def class_of(field: FieldInfo | None, data: Any) -> type[Section] | None:
    """The class of the section that a field of a config holds; None: it holds a value, or a list
    of sections. data: what the file has there."""
    if field is None or not isinstance(data, Mapping):
        return None
    for part in (*field.metadata, *_parts(field.annotation)):
        if isinstance(part, OneOf):
            return part.config_of(data)
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _parts(annotation: Any) -> list[Any]:
    """What stands inside an annotation (union, list, optional, Annotated), or it alone."""
    inside = get_args(annotation)
    return [part for one in inside for part in _parts(one)] if inside else [annotation]
