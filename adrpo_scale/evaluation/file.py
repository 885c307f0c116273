"""Evaluation files: a TOML whose `benchmark` decides which settings it has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import usual_path
from adrpo_scale.core.settings import leaves
from adrpo_scale.core.toml_text import read_toml
from adrpo_scale.evaluation.asked import AskedConfig, ImagesConfig, TextConfig
from adrpo_scale.evaluation.mmau.base import MmauConfig, parse_settings
from adrpo_scale.run.file_kinds import require_kind
from adrpo_scale.run.load import assign, checked, parse_override

MMAU = "mmau"
_REMEDY = "configs/omni/mmau.toml is a shipped one"
KINDS: dict[str, type[AskedConfig]] = {"images": ImagesConfig, "text": TextConfig}


def load_evaluation(
    path: Path, overrides: Sequence[str] = (), data: Path | None = None
) -> AskedConfig | MmauConfig:
    """Reads and checks an evaluation file. overrides: "section.key=value". data: of `mmau`, in
    place of the file's. Raises ConfigError, which lists all faults."""
    document = read_toml(path, _REMEDY)
    require_kind(path, document, "evaluation")
    for override in overrides:
        assign(document, *parse_override(override))
    benchmark = document.get("benchmark", MMAU)  # files of before name none
    if benchmark == MMAU:
        return parse_settings(document if data is None else document | {"data": str(data)})
    if data is not None:
        raise ConfigError(f'--data {data} goes with benchmark = "mmau"; name files in [prompts]')
    return parse_evaluation(document)


def given_keys(path: Path, overrides: Sequence[str]) -> dict[str, str]:
    """file or --set, by the dotted keys that an evaluation file and overrides give."""
    document = read_toml(path, _REMEDY)
    if isinstance(document.get("prompts"), dict):  # one set
        document["prompts"] = [document["prompts"]]
    found = {key: "file" for key, _ in leaves(document)}
    for override in overrides:
        key, value = parse_override(override)
        found |= {f"{key}.{leaf}" if leaf else key: "--set" for leaf, _ in leaves(value)}
    return found


def parse_evaluation(document: dict[str, Any]) -> AskedConfig:
    """The settings of an evaluation of pictures or completions, from plain data. Raises
    ConfigError, one line a fault."""
    benchmark = document.get("benchmark")
    if not isinstance(benchmark, str) or benchmark not in KINDS:
        known = ", ".join([*KINDS, MMAU])
        raise ConfigError(f"benchmark = {benchmark!r}: expected one of {known}")
    return checked(KINDS[benchmark], document)


def results_folder(config: AskedConfig, path: Path) -> Path:
    """The folder of an evaluation's results. path: of its file."""
    if config.to is not None:
        return usual_path(config.to)
    return Path(os.environ.get("ADRPO_RUNS", "runs")) / "evaluations" / path.stem
