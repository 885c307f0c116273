"""Advantages within a group and a divergence with coefficient beta: the family of ADRPO and GRPO.

    loss = surrogate(A) + beta · divergence          (arXiv 2510.18053, eq. 3, 6, 7)

A = (R - V(c)) / scale and A_clip = clip(A, advantage_min, advantage_max). An algorithm of this
family defines one method, `beta`: the coefficient of a sample with a given A_clip. [regulariser]
may state another shape than the one of its name.
"""

from __future__ import annotations

import dataclasses
import warnings
from abc import abstractmethod
from typing import ClassVar

import torch
from pydantic import field_validator, model_validator
from torch import Tensor

from adrpo_scale.algorithms.advantages import Baseline, Scale, scored
from adrpo_scale.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Stated,
    included_sum,
    plain_credit,
)
from adrpo_scale.algorithms.regulariser import Clip, RegulariserConfig, clip_limits, clip_of
from adrpo_scale.algorithms.regulariser_rules import NOTHING
from adrpo_scale.algorithms.terms import LikelihoodSettings, LikelihoodTerms, Terms
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.python_warnings import SettingsWarning
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards


class CreditConfig(AlgorithmConfig):
    """Settings of the credit. Their defaults are the paper's for flow matching."""

    beta0: float = setting(
        1.0,
        "baseline regularisation coefficient (the paper: 1 for flow matching, 0.04 for tokens)",
        paper="image experiments",
        ge=0,
        le=NUMBER,
    )
    advantage_min: float = setting(
        -1.0,
        "A_min: lower clip of the advantage (tokens: -0.04)",
        paper="image experiments",
        ge=-NUMBER,
        le=NUMBER,
    )
    advantage_max: float = setting(
        1.0,
        "A_max: upper clip of the advantage (tokens: 0.04)",
        paper="image experiments",
        ge=-NUMBER,
        le=NUMBER,
    )
    advantage_clip: Clip | None = setting(
        None,
        "A_min and A_max in units of beta0, in their place: c for ± c, or [low, high]",
        before=None,
    )
    baseline: Baseline = setting(
        "group", "V(c): mean reward of the prompt's group, or of the batch"
    )
    scale: Scale = setting(
        "none", "divisor of the advantage (tokens: group_std)", paper="Algorithm 1"
    )

    _clip = field_validator("advantage_clip", mode="plain")(clip_of)

    @model_validator(mode="after")
    def _clip_range_is_ordered(self) -> CreditConfig:
        if not self.advantage_min <= 0 <= self.advantage_max:
            raise ValueError(
                f"advantage_min = {self.advantage_min}, advantage_max = {self.advantage_max}: "
                "the clip range is reversed or leaves out 0, the advantage of a group of equal "
                "rewards; expected advantage_min <= 0 <= advantage_max"
            )
        if self.advantage_clip is not None and (self.advantage_min, self.advantage_max) != (-1, 1):
            raise ValueError(
                f"advantage_clip = {self.advantage_clip} beside advantage_min = "
                f"{self.advantage_min} and advantage_max = {self.advantage_max}, which say the "
                "same in other units: state the clip in units of beta0 alone, or the two limits "
                "alone"
            )
        return self

    def clip_range(self, beta0: float) -> tuple[float, float]:
        """(A_min, A_max) at this beta0."""
        if self.advantage_clip is None:
            return self.advantage_min, self.advantage_max
        return clip_limits(self.advantage_clip, beta0)


class GroupRelativeConfig(LikelihoodSettings, CreditConfig):
    """The settings of the credit, then those for tokens alone (`LikelihoodSettings`)."""


class GroupRelative(Algorithm):
    Config: ClassVar[type[GroupRelativeConfig]] = GroupRelativeConfig
    config: GroupRelativeConfig
    beta0_key: ClassVar[str | None] = "beta0"
    has_advantages: ClassVar[bool] = True
    small_advantage: ClassVar[float] = 0.05
    when_equal: ClassVar[str] = "their advantages are 0"
    must_state: ClassVar = {
        LikelihoodTerms: Stated(
            ("beta0", "scale"),
            'the paper\'s beta0 = 0.04, scale = "group_std" (and, with ADRPO, advantage_min = '
            "-0.04, advantage_max = 0.04)",
        )
    }

    def __init__(
        self,
        config: GroupRelativeConfig,
        *gives: type[Terms],
        regulariser: RegulariserConfig = NOTHING,
        base_coefficient: float = 0.0,
    ) -> None:
        super().__init__(config, *gives, regulariser=regulariser, base_coefficient=base_coefficient)
        if config.beta0:  # without it, the divergence counts for nothing
            self.terms.check(config)
        if self.regulariser is None:
            self._check_bounds()

    def _check_bounds(self) -> None:
        """Raises ConfigError where the loss of a sample with advantage 0, as in a group of equal
        rewards, has no lower bound; warns where it has none at an end of the clip range."""
        for name in ("", "advantage_min", "advantage_max"):
            advantage = getattr(self.config, name) if name else 0.0
            beta = float(self.beta(torch.tensor(advantage, dtype=torch.float64)))
            if self.terms.is_bounded(advantage, beta):
                continue
            if not name:
                raise ConfigError(
                    f"algorithm.beta0 = {self.config.beta0}: the loss of a sample with advantage 0 "
                    f"has no lower bound; {self.terms.bound}. Raise beta0: the paper has 1 for "
                    "flow matching, 0.04 for tokens"
                )
            warnings.warn(
                f"algorithm.{name} = {advantage} with beta0 = {self.config.beta0}: the loss of "
                f"such a sample, whose beta is {beta:g}, has no lower bound; {self.terms.bound}. "
                f"Raise beta0, or bring {name} closer to 0",
                category=SettingsWarning,
                stacklevel=4,
            )

    def limits(self, beta0: float) -> tuple[float, float]:
        return self.config.clip_range(beta0)

    def curvature(self, advantage: float, beta: float) -> float | None:
        return advantage + beta

    @abstractmethod
    def beta(self, advantage_clipped: Tensor) -> Tensor:
        """Coefficient of each sample's divergence, of the shape of `advantage_clipped`."""

    def credit(self, rewards: Rewards) -> Credit:
        config = self.config
        total_PG, advantage_S = scored(rewards, config)
        clipped_S = advantage_S.clamp(*config.clip_range(config.beta0))
        held = self.regulariser
        if held is None or held.shape is None:
            beta_S = self.beta(clipped_S)
        else:
            beta_S = held.shaped(held.shape, advantage_S, clipped_S, rewards, total_PG)
        if held is not None:
            beta_S = held.held(beta_S, rewards, total_PG)
        credit = plain_credit(advantage_S, beta_S, rewards)
        return dataclasses.replace(credit, advantage_clipped=clipped_S)

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        surrogate_N = terms.surrogate(credit, self.config)
        return included_sum(surrogate_N + terms.penalty(credit, self.config), credit)

    def row_counts(self, credit: Credit, segments_N: Tensor) -> Tensor:
        return self.terms.counts(credit.include, segments_N, self.config)
