"""GRPO (arXiv 2402.03300; the paper's eq. 3): ADRPO's fixed-beta control.

The same advantages and surrogate with one coefficient beta0 for every sample. On flow matching the
loss is A_clip · |v - u|² + beta0 · |v - v_ref|², convex only while A_min > -beta0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.group_relative import GroupRelative, GroupRelativeConfig
from adrpo_scale.algorithms.regulariser import Shape
from adrpo_scale.core.settings import setting


class GrpoConfig(GroupRelativeConfig):
    name: str = setting("grpo", "Group Relative Policy Optimization with a fixed beta")


class Grpo(GroupRelative):
    Config: ClassVar[type[GrpoConfig]] = GrpoConfig
    shapes: ClassVar[tuple[Shape, ...]] = ("constant",)
    shape: ClassVar[Shape | None] = "constant"

    def beta(self, advantage_clipped: Tensor) -> Tensor:
        return torch.full_like(advantage_clipped, self.config.beta0)
