"""The base of every config class, and the function that declares a setting with its meaning.

A component's config class stands beside the component, derives from `Section` and declares its
fields with `setting(default, meaning, paper=...)`. Unknown keys and wrong types are errors: a
misspelt key that is silently ignored costs a week of GPU time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Effect = Literal["maths", "content", "rounding", "none"]
"""The effect of a setting on a run that resumes with another value of it.

maths: changes the training; refused at a resume. content: names something whose content is compared
instead (a model, a prompt file). rounding: changes only the order of sums. none: changes nothing
that is trained.
"""

REQUIRED: Any = ...


class Section(BaseModel):
    """Strict and frozen; int is accepted for float, nothing else is converted, no nan or inf."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False
    )
    EFFECT: ClassVar[Effect] = "maths"  # of the settings that state none

    @field_validator("*", mode="before")
    @classmethod
    def _choices_have_a_type(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic takes true and 1.0 for the choice 1."""
        field = cls.model_fields.get(info.field_name or "")
        choices = get_args(field.annotation) if field is not None else ()
        if get_origin(getattr(field, "annotation", None)) is Literal and any(
            value == choice and type(value) is not type(choice) for choice in choices
        ):
            expected = ", ".join(map(repr, choices[:-1])) + f" or {choices[-1]!r}"
            raise PydanticCustomError("literal_error", f"Input should be {expected}")
        return value


_ALWAYS: Any = object()  # runs have had the setting from the beginning


def setting(
    default: Any,
    meaning: str,
    *,
    paper: str | None = None,
    effect: Effect | None = None,
    before: Any = _ALWAYS,
    formerly: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """A field of a `Section`.

    default: the value when the TOML file is silent; `REQUIRED` if it may not be.
    meaning: one line that `adrpo-scale config` shows.
    paper: the place in the paper (arXiv 2510.18053) that states the default, e.g. "Algorithm 1";
    None where there is none.
    effect: of another value in the middle of a run; the section's EFFECT by default.
    before: for a setting that is added to a section which runs already have: the value that those
    runs had without it. The run's identity leaves the setting out at that value, and the default is
    that value too: otherwise the command of an older run would start another run. With an effect
    that is in no identity (rounding, none), new runs may have another default; it is then for the
    setting's owner that a run of before keeps its value.
    formerly: the names that the key had in its section, the first one first. The run's identity
    goes by the first; all are accepted in place of the key.
    limits: pydantic's ge, gt, le, lt, min_length, ...
    """
    if before not in (_ALWAYS, default) and effect not in ("rounding", "none"):
        raise TypeError(
            f"default {default!r} with before = {before!r}: a run of before, started again by the "
            "same command, would be another run; make them equal"
        )
    notes = {"paper": paper, "effect": effect, "formerly": list(formerly)}
    extra: dict[str, Any] = {name: note for name, note in notes.items() if note}
    if before is not _ALWAYS:
        extra["before"] = before
    return Field(default, description=meaning, json_schema_extra=extra or None, **limits)


def notes_of(info: FieldInfo) -> dict[str, Any]:
    """The arguments of `setting` other than default, meaning and limits, by name."""
    notes: Any = info.json_schema_extra
    return notes if isinstance(notes, dict) else {}


def names_of(name: str, info: FieldInfo) -> list[str]:
    """Every name that a key has had, the first one first and today's last."""
    return [*notes_of(info).get("formerly", ()), name]


@dataclass(frozen=True)
class Leaf:
    """One setting of a config. path: its keys, dotted; first: the same by their first names."""

    path: str
    first: str
    value: Any
    info: FieldInfo
    effect: Effect

    @property
    def is_as_before(self) -> bool:
        """Whether the value is that of runs from before the setting existed."""
        notes = notes_of(self.info)
        return "before" in notes and self.value == notes["before"]


def walk(
    section: Section, path: str = "", first: str = "", inherited: Effect | None = None
) -> Iterator[Leaf]:
    """Every setting, in declaration order. path, first: of the section, with a dot at its end."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        here, there = f"{path}{name}", f"{first}{names_of(name, info)[0]}"
        effect: Effect | None = notes_of(info).get("effect") or inherited
        if isinstance(value, Section):
            yield from walk(value, f"{here}.", f"{there}.", effect)
        elif inside := _sections_in(value):
            for key, item in inside:
                yield from walk(item, f"{here}.{key}.", f"{there}.{key}.", effect)
        else:
            yield Leaf(here, there, value, info, effect or section.EFFECT)


def _sections_in(value: Any) -> list[tuple[Any, Section]]:
    """(key, section) of a list or table of sections; [] for anything else."""
    items = [*value.items()] if isinstance(value, dict) else []
    items += enumerate(value) if isinstance(value, list) else []
    return [(key, item) for key, item in items if isinstance(item, Section)]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every entry of nested dicts and lists that is no section itself."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}.{number}")
    else:
        yield path, value
