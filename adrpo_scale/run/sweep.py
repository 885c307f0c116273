"""A sweep: a TOML file that stands for several runs, and the settings of each of them.

    base = "configs/sd3/adrpo.toml"       # or a list: the configs are then the first axis

    [grid]                                # every combination
    "algorithm.beta0" = [0.5, 1.0, 2.0]
    seed = [0, 1, 2]

    [zip]                                 # side by side
    "optimizer.learning_rate" = [1e-4, 3e-5]
    iterations = [500, 1500]

An element is one run. Elements are numbered from 0 in the order of the file: the axis that stands
first changes slowest; [zip] is one axis. A key with one value holds for every run. No module here
imports torch, so that `status --sweep` answers at once.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.printable import shown
from adrpo_scale.core.toml_text import read_toml
from adrpo_scale.run.file_kinds import require_kind

MOST = 10_000  # elements; Slurm's largest array has fewer, as a rule
_KNOWN = ("base", "grid", "zip")

Settings = Mapping[str, Any]  # dotted key → value
Axis = list[dict[str, Any]]


@dataclass(frozen=True)
class Element:
    """One run of a sweep. base: the config as the file names it. settings: all that the sweep sets.
    label: the settings that differ between elements, for people."""

    number: int
    base: str
    settings: Settings
    label: str

    @property
    def overrides(self) -> list[str]:
        """The settings as arguments of `--set`."""
        return [f"{key}={toml(value)}" for key, value in self.settings.items()]

    def __str__(self) -> str:
        return f"#{self.number} {self.label}".rstrip()


@dataclass(frozen=True)
class Sweep:
    """name: of the file, without its ending. differing: short name of each key that differs between
    elements, by key."""

    name: str
    file: Path
    elements: Sequence[Element]
    differing: Mapping[str, str]

    def element(self, number: int) -> Element:
        """Raises ConfigError where there is none."""
        if not 0 <= number < len(self.elements):
            raise ConfigError(
                f"element {number}: {self.file} has the elements 0 to {len(self.elements) - 1}; on "
                f"Slurm, --array=0-{len(self.elements) - 1}"
            )
        return self.elements[number]

    def block(self, number: int, size: int) -> Sequence[Element]:
        """The elements of block `number`, when each has `size`. Raises ConfigError for no block."""
        blocks = math.ceil(len(self.elements) / size)
        if not 0 <= number < blocks:
            raise ConfigError(
                f"block {number}: {self.file} has {len(self.elements)} elements, {blocks} blocks "
                f"of {size}; on Slurm, --array=0-{blocks - 1}"
            )
        return self.elements[number * size : (number + 1) * size]


def read_sweep(file: Path) -> Sweep:
    """The sweep in a file. Raises ConfigError, which lists all faults; the configs are not read."""
    data = read_toml(file, "name a sweep's file, e.g. configs/sweeps/clip_range.toml")
    require_kind(file, data, "sweep")
    faults = [*_unknown(data), *_faults_of_base(data)]
    axes: dict[str, Axis] = {}
    for name in data:
        if name in ("grid", "zip"):
            found, wrong = _axes(name, data[name])
            axes, faults = axes | found, [*faults, *wrong]
    faults += _twice(data)
    if faults:
        raise ConfigError("\n".join(f"{file}: {fault}" for fault in faults))
    bases = data["base"] if isinstance(data["base"], list) else [data["base"]]
    if not axes and len(bases) < 2:
        raise ConfigError(f'{file}: nothing differs; give [grid], e.g. with "seed" = [0, 1, 2]')
    count = math.prod([len(bases), *map(len, axes.values())])
    if count > MOST:
        raise ConfigError(f"{file}: {count:,} elements, at most {MOST:,} are expected; give fewer")
    combinations = list(itertools.product(bases, *axes.values()))
    settings = [_merged(parts) for _, *parts in combinations]
    differing = _short(settings)
    elements = [
        Element(number, base, one, _label(base if len(bases) > 1 else None, one, differing))
        for number, ((base, *_), one) in enumerate(zip(combinations, settings, strict=True))
    ]
    return Sweep(file.stem, file, elements, differing)


# ---- the file ----------------------------------------------------------------------------------


def _unknown(data: Mapping[str, Any]) -> Iterator[str]:
    for key in data:
        if key not in _KNOWN:
            near = difflib.get_close_matches(key, _KNOWN, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            yield f"{shown(key, quote=False)}: unknown key; {hint}known here: {', '.join(_KNOWN)}"


def _faults_of_base(data: Mapping[str, Any]) -> Iterator[str]:
    base = data.get("base")
    bases = base if isinstance(base, list) else [base]
    if base is None:
        yield 'base: is required and was not given; name a config, base = "configs/sd3/adrpo.toml"'
    elif not bases or not all(isinstance(one, str) and one for one in bases):
        yield f"base = {shown(base)}: a config's path, or a list of them, is expected"
    elif len(set(bases)) < len(bases):
        yield f"base = {shown(bases)}: a config is there twice; name each once"


def _axes(name: str, table: Any) -> tuple[dict[str, Axis], list[str]]:
    """(axes by name, faults) of [grid] or [zip]."""
    if not isinstance(table, dict):
        return {}, [f"{name} = {shown(table)}: a table is expected, [{name}]"]
    lists = dict(_lists(table))
    faults = [f for k, values in lists.items() if (f := _fault(f"{name}.{k}", values))]
    if name == "grid":  # side by side, one list may say a thing twice
        faults += [f for k, values in lists.items() if (f := _repeated(f"grid.{k}", values))]
    if faults or not lists:
        return {}, faults
    if name == "grid":
        return {f"grid.{k}": [{k: value} for value in values] for k, values in lists.items()}, []
    lengths = {key: len(values) for key, values in lists.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {length}" for key, length in lengths.items())
        return {}, [f"[zip] goes side by side, so its lists are of one length: {told}"]
    rows = zip(*lists.values(), strict=True)
    return {"zip": [dict(zip(lists, row, strict=True)) for row in rows]}, []


def _lists(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, what it is given) of every key that is no table."""
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _lists(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _fault(key: str, values: Any) -> str | None:
    if not isinstance(values, list) or not values:
        return f"{key} = {shown(values)}: a list of values is expected, e.g. [1, 2]"
    if any(isinstance(value, date | time) for value in _inside(values)):
        return f"{key}: a date is no setting; write it in quotes"
    return None


def _repeated(key: str, values: Any) -> str | None:
    texts = [_text(value) for value in values] if isinstance(values, list) else []
    twice = next((t for n, t in enumerate(texts) if t in texts[:n]), None)
    if twice is None:
        return None
    return f"{key}: {shown(twice, quote=False)} is there twice; give each value once"


def _inside(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    yield value
    for item in items:
        yield from _inside(item)


def _twice(data: Mapping[str, Any]) -> Iterator[str]:
    tables = [data.get(name) for name in ("grid", "zip")]
    keys = Counter(k for table in tables if isinstance(table, dict) for k, _ in _lists(table))
    for key, count in keys.items():
        if count > 1:
            yield f"{key} is in [grid] and in [zip]; give it in one of them"


def _merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


# ---- names -------------------------------------------------------------------------------------


def _short(settings: Sequence[Settings]) -> dict[str, str]:
    """Keys that differ → their last part, or all of it where two have the same one."""
    keys = [k for k in settings[0] if len({_text(one[k]) for one in settings}) > 1]
    ends = Counter(key.rpartition(".")[2] for key in keys)
    return {k: e if ends[e := k.rpartition(".")[2]] == 1 else k for k in keys}


def _label(base: str | None, settings: Settings, differing: Mapping[str, str]) -> str:
    parts = [f"{short}={value_text(settings[key])}" for key, short in differing.items()]
    return " ".join([*([family(base)] if base else []), *parts])


def family(base: str) -> str:
    """sd3_adrpo of configs/sd3/adrpo.toml: the path below `configs`, elsewhere the file's name."""
    parts = Path(base).with_suffix("").parts
    below = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else parts[-1:]
    *folders, stem = below
    return "_".join([*(folder for folder in folders if not stem.startswith(folder)), stem])


def value_text(value: Any) -> str:
    """A value for people and for names: a component is its name."""
    if isinstance(value, dict):
        named = value.get("name", value.get("kind"))
        return str(named) if named is not None else _text(value)
    return value if isinstance(value, str) else _text(value)


def run_name(sweep: Sweep, element: Element, digest: str) -> str:
    """sd3_adrpo,beta0=0.5,seed=1-DIGEST: the name of an element's run folder."""
    values = {short: value_text(element.settings[key]) for key, short in sweep.differing.items()}
    parts = [f"{short}={_plain(text)[:40]}" for short, text in values.items()]
    return f"{','.join([_plain(family(element.base)), *parts])[:200]}-{digest}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
