"""The class of each section in the data of a config file, and the current names of renamed keys.

Values are not checked here: data that fits no section is left unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic.fields import FieldInfo

from adrpo_scale.core.components import OneOf
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.settings import Section, names_of
from adrpo_scale.run.config import RunConfig


def section_at(
    data: Any, location: Sequence[Any], whole: type[Section] = RunConfig
) -> type[Section]:
    """The class of the section at a path of keys and numbers in a config of the class `whole`."""
    model = whole
    field: FieldInfo | None = None
    for part in location:
        data = _inside(data, part)
        # The keys of a table of sections, as [models.NAME], are no fields.
        field = model.model_fields.get(part, field) if isinstance(part, str) else field
        model = class_of(field, data) or model
    return model


def class_of(field: FieldInfo | None, data: Any) -> type[Section] | None:
    """The class of the section that a field of a config holds; None: it holds a value, or a list
    of sections. data: what the file has there. ConfigError: no component has that name."""
    if field is None or not isinstance(data, Mapping):
        return None
    for part in (*field.metadata, *_parts(field.annotation)):
        if isinstance(part, OneOf):
            return part.config_of(data)
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _parts(annotation: Any) -> list[Any]:
    """The types inside an annotation (union, list, optional, Annotated), or the annotation."""
    inside = get_args(annotation)
    return [part for one in inside for part in _parts(one)] if inside else [annotation]


def _inside(data: Any, part: Any) -> Any:
    """The value of `data` at a key or a number; {} where there is none."""
    if isinstance(data, list):
        number = natural(str(part))
        return {} if number is None or number >= len(data) else data[number]
    return data.get(part, {}) if isinstance(data, Mapping) else {}


def modern(data: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The data with current names of all keys, and (old path → current path) of the renamed ones.

    ConfigError where a key is given by two of its names.
    """
    renamed: dict[str, str] = {}
    return _modern(data, RunConfig, "", renamed), renamed


def _modern(
    data: Mapping[str, Any], model: type[Section], prefix: str, renamed: dict[str, str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for old, value in data.items():
        key = _name_of_today(old, model)
        if key in found or (key != old and key in data):
            raise ConfigError(
                f"{prefix}{old}, whose name is {key} now, is given beside {prefix}{key}, or twice: "
                f"give {prefix}{key} alone"
            )
        if key != old:
            renamed[prefix + old] = prefix + key
        field, here = model.model_fields.get(key), f"{prefix}{key}."
        if isinstance(value, list):
            items = [(f"{here}{number}.", item) for number, item in enumerate(value)]
            found[key] = [_modern_item(field, item, place, renamed) for place, item in items]
        else:
            found[key] = _modern_item(field, value, here, renamed)
    return found


def _modern_item(field: FieldInfo | None, value: Any, prefix: str, renamed: dict[str, str]) -> Any:
    model = _class_if_known(field, value)
    return value if model is None else _modern(value, model, prefix, renamed)


def current_key(key: str, data: Any) -> str:
    """A dotted key by its current names. data: the config of the key."""
    model: type[Section] | None = RunConfig
    field: FieldInfo | None = None
    names = []
    for part in key.split("."):
        if not isinstance(data, list):
            part = _name_of_today(part, model) if model is not None else part
            field = model.model_fields.get(part) if model is not None else None
        names.append(part)
        data = _inside(data, part)
        model = _class_if_known(field, data)
    return ".".join(names)


def _name_of_today(key: str, model: type[Section]) -> str:
    fields = model.model_fields
    return next((name for name, info in fields.items() if key in names_of(name, info)), key)


def _class_if_known(field: FieldInfo | None, data: Any) -> type[Section] | None:
    try:
        return class_of(field, data)
    except ConfigError:
        return None  # an unknown component; the check of values raises the error
