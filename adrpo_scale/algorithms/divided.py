"""Advantages within ± 1: clipped to ± c and divided by c. What the releases of DiffusionNFT and of
advantage-weighted matching have in common."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from adrpo_scale.algorithms.advantages import Baseline, Scale, scored
from adrpo_scale.algorithms.base import Algorithm, AlgorithmConfig, plain_credit
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards


class DividedConfig(AlgorithmConfig):
    beta0: float = setting(1.0, "base value of the coefficient", gt=0, le=NUMBER)
    clip: float = setting(5.0, "c: advantages are clipped to ± c and divided by c", gt=0, le=NUMBER)
    baseline: Baseline = setting("group", "V(c): mean reward of the group, or of the batch")
    scale: Scale = setting("global_std", "divisor of the advantage")


class Divided(Algorithm):
    config: DividedConfig
    beta0_key: ClassVar[str | None] = "beta0"
    small_advantage: ClassVar[float] = 0.05
    when_equal: ClassVar[str] = "they hold the policy to the reference alone"

    @abstractmethod
    def beta(self, divided_S: Tensor) -> Tensor | float:
        """Coefficient of each sample's divergence. divided_S: the clipped A / c."""

    def credit(self, rewards: Rewards) -> Credit:
        """`Credit.advantage_clipped` is the clipped A / c, within ± 1."""
        _, advantage_S = scored(rewards, self.config)
        c = self.config.clip
        divided_S = advantage_S.clamp(-c, c) / c
        credit = plain_credit(advantage_S, self.beta(divided_S), rewards)
        return dataclasses.replace(credit, advantage_clipped=divided_S)

    def needs_reference(self, credit: Credit) -> bool:
        return True
