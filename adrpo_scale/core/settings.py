"""The base of every config class, and how a setting says what it means and where it comes from.

A component's config class stands beside the component, derives from `Section` and declares its
fields with `setting(default, meaning, paper=...)`. Unknown keys and wrong types are errors: a
misspelt key that is silently ignored costs a week of GPU time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

Effect = Literal["maths", "content", "rounding", "none"]
"""The effect of a setting on a run that resumes with another value of it.

maths: what is learned; refused at a resume. content: the name of something whose content is
compared instead (a model, a prompt file). rounding: only the order of sums. none: nothing that is
trained.
"""

REQUIRED: Any = ...


class Section(BaseModel):
    """Strict and frozen; int is accepted for float, nothing else is converted, no nan or inf."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False
    )
    EFFECT: ClassVar[Effect] = "maths"  # of the settings that do not say it themselves


def setting(
    default: Any,
    meaning: str,
    *,
    paper: str | None = None,
    effect: Effect | None = None,
    **limits: Any,
) -> Any:
    """A field of a `Section`.

    default: the value when the TOML file is silent; `REQUIRED` if it may not be.
    meaning: one line that `adrpo-scale config` shows.
    paper: where the paper (arXiv 2510.18053) states the default, e.g. "Algorithm 1"; None where
    it does not.
    effect: what changing it in the middle of a run does; the section's EFFECT by default.
    limits: pydantic's ge, gt, le, lt, min_length, ...
    """
    notes = {"paper": paper, "effect": effect}
    extra: dict[str, Any] = {name: text for name, text in notes.items() if text}
    return Field(default, description=meaning, json_schema_extra=extra or None, **limits)


def walk(
    section: Section, prefix: str = "", inherited: Effect | None = None
) -> Iterator[tuple[str, Any, FieldInfo, Effect]]:
    """(dotted path, value, field, effect) of every setting, in declaration order."""
    for name, info in type(section).model_fields.items():
        path, value = f"{prefix}{name}", getattr(section, name)
        notes = info.json_schema_extra
        effect: Any = (notes.get("effect") if isinstance(notes, dict) else None) or inherited
        if isinstance(value, Section):
            yield from walk(value, f"{path}.", effect)
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for number, item in enumerate(value):
                yield from walk(item, f"{path}.{number}.", effect)
        else:
            yield path, value, info, effect or section.EFFECT


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything that is not itself a section."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}")
    else:
        yield path, value
