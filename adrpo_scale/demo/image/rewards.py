"""The reward `glyph_checker` of the image demo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.image.grading import grade
from adrpo_scale.demo.image.task import check
from adrpo_scale.rewards.base import PlainReward, RewardConfig


class GlyphCheckerConfig(RewardConfig):
    kind: str = setting("glyph_checker", "the exact checker of the image demo")
    graded: bool = setting(
        False,
        "partial credit (count, shapes, colours, relation), 1 exactly where the checker says yes: "
        "to train on; false, yes or no: to evaluate",
        before=False,
    )


class GlyphChecker(PlainReward):
    """1.0 where a demo image shows what its prompt says; else 0.0, or graded: partial credit."""

    Config: ClassVar[type[GlyphCheckerConfig]] = GlyphCheckerConfig
    judges = ("pictures",)

    def __init__(self, config: GlyphCheckerConfig, device: torch.device) -> None:
        super().__init__(config)
        self._judge = grade if config.graded else check

    def __call__(self, artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor(
            [float(self._judge(a, p.text)) for a, p in zip(artifacts, prompts, strict=True)]
        )
