"""The base of every config class, and how a setting says what it means and where it comes from.

A component's config class lives beside the component, derives from `Section` and declares its
fields with `setting(default, meaning, paper=...)`. Unknown keys and wrong types are errors: a
misspelt key that is silently ignored costs a week of GPU time.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

REQUIRED: Any = ...


class Section(BaseModel):
    """Strict and frozen; int is accepted for float, nothing else is converted, no nan or inf."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, validate_default=True, allow_inf_nan=False
    )


def setting(default: Any, meaning: str, *, paper: str | None = None, **limits: Any) -> Any:
    """A field of a `Section`.

    default: the value when the TOML file is silent; `REQUIRED` if it may not be.
    meaning: one line that `adrpo-scale config` shows.
    paper: where the paper (arXiv 2510.18053) gives the default, e.g. "Algorithm 1"; None if the
    default is our own choice.
    limits: pydantic's ge, gt, le, lt, min_length, ...
    """
    extra: dict[str, Any] | None = {"paper": paper} if paper else None
    return Field(default, description=meaning, json_schema_extra=extra, **limits)
