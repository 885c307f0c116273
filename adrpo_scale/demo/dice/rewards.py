"""The reward `dice_checker` of the dice demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.dice.task import check
from adrpo_scale.rewards.base import PlainReward, RewardConfig


class DiceCheckerConfig(RewardConfig):
    kind: str = setting("dice_checker", "the exact checker of the dice demo")


class DiceChecker(PlainReward):
    """1.0 where a picture of the dice demo shows what its prompt says, else 0.0."""

    Config: ClassVar[type[DiceCheckerConfig]] = DiceCheckerConfig
    judges = ("pictures",)

    def __init__(self, config: DiceCheckerConfig, device: torch.device) -> None:
        super().__init__(config)

    def __call__(self, artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor(
            [float(check(a, p.text)) for a, p in zip(artifacts, prompts, strict=True)]
        )
