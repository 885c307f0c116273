"""The rewards of a run, asked as `train` asks them: their code, their rows, a call on made-up
samples; on rank 0 alone.

Code that is not of this package is called in a process of its own with a time limit, so that a
judge that does not answer is a finding here.
"""

from __future__ import annotations

from pathlib import Path

import torch

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import REWARDS
from adrpo_scale.run.rewards import check_code, is_own_code, light_rewards, try_rewards


def rewards_check(config: RunConfig, run: Path, seconds: float) -> Check:
    """seconds: time limit of a call of other people's code."""
    resumes = run.is_dir() and bool(committed(run / CHECKPOINTS))
    try:
        check_code(config)
        prompts = _prompts(config)
        limited = _limited(config, seconds)
        rewards = light_rewards(limited, torch.device("cpu"), prompts, resumes)
        warnings = try_rewards(limited, [*rewards.values()], prompts)
    except AdrpoError as error:
        expected = "code that can be called as a reward, and rows that it can score"
        remedy = "see the end of each line; train refuses it, too"
        return Check("rewards", "", (Finding("fault", str(error), expected, remedy),))
    found = (
        Finding("warning", line, "numbers for made-up samples", "look at its errors with --trial")
        for line in warnings
    )
    return Check(
        "rewards", f"{counted(len(config.rewards), 'reward')}, code and rows", tuple(found)
    )


def _prompts(config: RunConfig) -> list[Prompt]:
    """Those of the run; [] where they cannot be read, which another check says."""
    try:
        return [prompt for part in build_prompts(config.prompts) for prompt in part]
    except AdrpoError:
        return []


def _limited(config: RunConfig, seconds: float) -> RunConfig:
    """The config with a time limit for each reward of other people's code that has none."""
    sections = [
        section.model_copy(update={"time_limit": section.time_limit or seconds})
        if is_own_code(REWARDS[section.kind])
        else section
        for section in config.rewards
    ]
    return config.model_copy(update={"rewards": sections})
