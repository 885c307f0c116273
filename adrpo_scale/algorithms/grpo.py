"""GRPO (arXiv 2402.03300; the paper's eq. 3): ADRPO's fixed-beta control.

The same advantages and surrogate with one coefficient beta0 for every sample. On flow matching the
loss is A_clip · |v - u|² + beta0 · |v - v_ref|², convex only while A_min > -beta0.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.base import GroupRelative, GroupRelativeConfig, Kind
from adrpo_scale.core.settings import setting


class GrpoConfig(GroupRelativeConfig):
    name: str = setting("grpo", "Group Relative Policy Optimization with a fixed beta")


class Grpo(GroupRelative):
    Config: ClassVar[type[GrpoConfig]] = GrpoConfig

    def __init__(self, config: GrpoConfig, kind: Kind) -> None:
        super().__init__(config, kind)
        if kind == "flow" and config.advantage_min <= -config.beta0:
            warnings.warn(
                f"algorithm.advantage_min = {config.advantage_min} is not above -beta0 = "
                f"{-config.beta0}: the loss of a bad sample has no lower bound; raise beta0 or "
                "advantage_min",
                stacklevel=2,
            )

    def beta(self, advantage_clipped: Tensor) -> Tensor:
        return torch.full_like(advantage_clipped, self.config.beta0)
