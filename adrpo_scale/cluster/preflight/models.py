"""Whether a run's models can be trained, by headers alone; on rank 0."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from adrpo_scale.cluster.preflight.base import Finding
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.engines.loading import build_on_meta
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.soundness import disagreements_of, notices_of


def model_findings(config: RunConfig, run: Path) -> list[Finding]:
    """Why `train` would refuse the models of a config, which are on this machine; where one fault
    hides others, that one alone. What a run with a checkpoint began with is a warning."""
    is_begun = (run / CHECKPOINTS).is_dir() and bool(committed(run / CHECKPOINTS))
    try:
        domain = build_domain(config)
        domain.check_training()
        needs = config.needs_from_hub()
        told = [_finding("warning", line) for line in dict.fromkeys(notices_of(needs))]
        lines = list(dict.fromkeys(disagreements_of(needs, domain)))
        if not lines or is_begun:
            build_on_meta(domain.policy_spec(), trained=True)
    except AdrpoError as error:
        return [_finding("fault", str(error))]
    return [_finding("warning" if is_begun else "fault", line) for line in lines] + told


def _finding(severity: Literal["fault", "warning"], line: str) -> Finding:
    return Finding(severity, line, "a model that this run can train", "the line says what helps")
