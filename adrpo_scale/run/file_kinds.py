"""What a TOML file is: the config of a run, a sweep, or an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.toml_text import read_toml

Kind = Literal["run", "sweep", "evaluation"]

_SWEEP = ("grid", "zip")
_RUN = ("algorithm", "rewards", "optimizer", "iterations", "limits", "checkpoint")
_ARE: dict[Kind, str] = {
    "run": "the config of a run",
    "sweep": "a sweep",
    "evaluation": "an evaluation",
}
_TAKEN_BY: dict[Kind, str] = {
    "run": "`adrpo-scale train {file}` trains it",
    "sweep": "`adrpo-scale sweep {file}` lists its runs",
    "evaluation": "`adrpo-scale evaluate {file}` carries it out",
}


def kind_of(data: Mapping[str, Any]) -> Kind | None:
    """What a file of these keys is; None for one that says nothing of what it is."""
    if "benchmark" in data:
        return "evaluation"
    if "base" in data or any(isinstance(data.get(key), dict) for key in _SWEEP):
        return "sweep"
    return "run" if any(key in data for key in _RUN) else None


def kind_of_file(file: Path) -> Kind | None:
    """What a file is. Raises ConfigError where it is no TOML file."""
    return kind_of(read_toml(file, "see configs/ for the shipped ones"))


def require_kind(file: Path, data: Mapping[str, Any], *expected: Kind) -> None:
    """Raises ConfigError where a file is clearly of another kind than those expected."""
    found = kind_of(data)
    if found is not None and found not in expected:
        wanted = " or ".join(_ARE[kind] for kind in expected)
        remedy = _TAKEN_BY[found].format(file=file)
        raise ConfigError(f"{file} is {_ARE[found]}; expected {wanted}: {remedy}")


def require_no_options(kind: Kind, file: Path, given: Mapping[str, Any]) -> None:
    """Raises ConfigError for options that are given and mean nothing with a file of this kind.
    given: values by option."""
    names = [name for name, value in given.items() if value not in (None, [], False)]
    if names:
        raise ConfigError(f"{' and '.join(names)} with {file}, which is {_ARE[kind]}: leave it out")
