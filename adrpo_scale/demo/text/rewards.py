"""The text_rm demo's own reward, which a config names `kind = "demo_gold"`."""

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
    kind: str = setting("demo_gold", "what the text_rm demo's reward model was trained to say")


class DemoGold(PlainReward):
    """The gold score of the demo with the hackable reward model."""

    Config: ClassVar[type[DemoGoldConfig]] = DemoGoldConfig

    def __init__(self, config: DemoGoldConfig, device: torch.device) -> None:
        super().__init__(config)

    def __call__(self, artifacts: Sequence[Completion], prompts: Sequence[Prompt]) -> Tensor:
        pairs = zip(artifacts, prompts, strict=True)
        return torch.tensor([gold_score(p.text, c.text) for c, p in pairs])
