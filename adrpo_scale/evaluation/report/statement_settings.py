"""The settings of a statement: those that all rows share, those that differ, the paper's marks."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.settings import Leaf, notes_of, walk
from adrpo_scale.evaluation.report.comparison import Line
from adrpo_scale.evaluation.report.document import Block, Grid
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.origins import config_folder
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.folder import read_settings
from adrpo_scale.run.load import parse_config

_EFFECTS = ("maths", "content", "rounding")  # of settings that a number depends on
_MEASURED = ("iterations", "prompts.held_out", "evaluation.", "domain.evaluation.")
_JUDGED = ("model.", "mmau.")  # how an evaluation asked
_BESIDE = ("seed", "run", "row", "logging.", "checkpoint.", "limits.")  # where no config is read


@dataclass(frozen=True)
class _Value:
    """text: the value. mark: what the paper says of it; ""."""

    text: str
    mark: str = ""


def config_of(run: Evaluated) -> RunConfig | None:
    """The run's config; None where it cannot be read here, e.g. for a component of one's own."""
    folder = config_folder(run)
    with warnings.catch_warnings(), contextlib.suppress(AdrpoError):
        warnings.simplefilter("ignore")  # the run has shown them
        if folder is not None:
            return parse_config(read_settings(folder))
    return None


def settings_blocks(rows: Mapping[str, Line]) -> list[Block]:
    """Tables of the settings of rows, by the short names of these."""
    each = {name: _values(line.runs[0]) for name, line in rows.items()}
    keys = dict.fromkeys(key for values in each.values() for key in values)
    shared = [key for key in keys if len({values.get(key) for values in each.values()}) == 1]
    blocks: list[Block] = []
    if shared:
        values = next(iter(each.values()))
        lines = [(key, values[key].text, values[key].mark) for key in shared]
        blocks.append(Grid((("setting", "value", "paper"), *lines), "Settings that all rows have."))
    others = [key for key in keys if key not in shared]
    if others:
        head = ("setting", "value", "rows", "paper")
        blocks.append(Grid((head, *_differing(others, each)), "Settings in which rows differ."))
    return blocks


def _values(run: Evaluated) -> dict[str, _Value]:
    """The settings that a run's numbers depend on."""
    config = config_of(run)
    if config is None:
        return {k: _Value(_shown(v)) for k, v in run.settings.items() if not k.startswith(_BESIDE)}
    effects, found = config.effects(), {}
    for leaf in walk(config):
        matters = effects[leaf.path] in _EFFECTS and not leaf.is_as_before
        is_set = leaf.value is not None and leaf.value != [] and leaf.path in run.settings
        if is_set and leaf.path != "seed" and (matters or leaf.path.startswith(_MEASURED)):
            found[leaf.path] = _Value(_shown(run.settings[leaf.path]), _mark(leaf))
    judged = {k: _Value(_shown(v)) for k, v in run.settings.items() if k.startswith(_JUDGED)}
    return found | judged


def _mark(leaf: Leaf) -> str:
    """What the paper says of a setting, where its declaration knows."""
    place = notes_of(leaf.info).get("paper")
    if place is None:
        return ""
    if leaf.value == leaf.info.default:
        return f"the paper's, {place}"
    return f"the paper's is {_shown(leaf.info.default)}, {place}"


def _differing(
    keys: Sequence[str], each: Mapping[str, Mapping[str, _Value]]
) -> Sequence[tuple[str, ...]]:
    """A line for each value of a setting. A row that lacks it has another component."""
    lines = []
    for key in keys:
        has: dict[_Value, list[str]] = {}
        for name, values in each.items():
            if key in values:
                has.setdefault(values[key], []).append(name)
        lines += [(key, value.text, ", ".join(of), value.mark) for value, of in has.items()]
    return lines


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
