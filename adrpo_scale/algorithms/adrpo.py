"""ADRPO (arXiv 2510.18053, eq. 4-7, Algorithm 1): the coefficient of each sample's divergence is
beta0 - A_clip, lower for a sample above its baseline, higher for one below it.

Flow matching (eq. 6): A_clip · |v - u|² + (beta0 - A_clip) · |v - v_ref|², which equals, up to a
constant, beta0 · |v - v*|² with v* = v_ref + (A_clip / beta0) · (u - v_ref): the policy is pulled
at most max|A_clip| / beta0 of the way towards or away from its own sample.

Tokens (eq. 7): the clipped ratio with the unclipped A, plus (beta0 - A_clip) · KL.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from adrpo_scale.algorithms.group_relative import GroupRelative, GroupRelativeConfig
from adrpo_scale.algorithms.regulariser import Shape
from adrpo_scale.core.settings import setting


class AdrpoConfig(GroupRelativeConfig):
    name: str = setting("adrpo", "Adaptive Divergence Regularized Policy Optimization")


class Adrpo(GroupRelative):
    Config: ClassVar[type[AdrpoConfig]] = AdrpoConfig
    shapes: ClassVar[tuple[Shape, ...]] = ("clip", "tanh", "rank")
    shape: ClassVar[Shape | None] = "clip"

    def beta(self, advantage_clipped: Tensor) -> Tensor:
        return self.config.beta0 - advantage_clipped
