"""The plan of an evaluation file as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.plan import evaluation
from adrpo_scale.cluster.plan.hardware import build_hardware
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.evaluation.rows import rows_of
from adrpo_scale.evaluation.size import sets_of
from adrpo_scale.run.file_kinds import require_no_options


def plan_file(
    file: Path,
    machine: tuple[str, int, int, float],
    overrides: Sequence[str],
    given: Mapping[str, Any],
    as_json: bool,
) -> str:
    """The text of an evaluation's plan. machine: as `build_hardware` takes it. given: options that
    mean nothing here. Raises ConfigError, and DoesNotFitError where a model does not fit."""
    require_no_options("evaluation", file, given)
    config = load_evaluation(file, overrides)
    if isinstance(config, MmauConfig):
        raise ConfigError(
            f"{file} names no model, so there is nothing to count: a trial answers, `adrpo-scale "
            f"evaluate {file} --model RUN --limit 20`"
        )
    prompts = sum(len(one.prompts) for one in sets_of(config))
    hardware = build_hardware(*machine)
    plan = evaluation.plan_evaluation(config, rows_of(config.rows), prompts, hardware)
    evaluation.require_fit(plan)
    if as_json:
        return json.dumps(evaluation.facts(plan), indent=2)
    return "\n".join(evaluation.lines(plan))
