"""The reward `demo_gold` of the demo text_rm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.demo.text.rm_task import gold_score
from adrpo_scale.rewards.base import PlainReward, RewardConfig


class DemoGoldConfig(RewardConfig):
    kind: str = setting(
        "demo_gold", "the exact scorer that the text_rm demo's reward model was trained on"
    )


class DemoGold(PlainReward):
    """`rm_task.gold_score` of each review, in [0, 1]."""

    Config: ClassVar[type[DemoGoldConfig]] = DemoGoldConfig
    judges = ("completions",)

    def __init__(self, config: DemoGoldConfig, device: torch.device) -> None:
        super().__init__(config)

    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        pairs = zip(artifacts, prompts, strict=True)
        return torch.tensor([gold_score(p.text, c.text) for c, p in pairs])
