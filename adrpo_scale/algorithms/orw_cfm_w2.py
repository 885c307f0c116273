"""ORW-CFM-W2 (arXiv 2502.06061): online reward-weighted regression with a W2 bound.

    loss = w · supervised + beta · divergence,   w = exp(tau · R) >= 0

The w of a group are normalised to mean 1, so only differences of rewards within the group matter;
`Credit.advantage` holds them. Neither this paper nor ADRPO's states the normalisation: without it
the step size depends on the reward's offset. tau = 0 is plain online flow matching plus W2.

[regulariser] may state another shape than a constant; `beta` is then its beta0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.advantages import Scale, advantages, combined
from adrpo_scale.algorithms.base import Algorithm, AlgorithmConfig, included_sum, plain_credit
from adrpo_scale.algorithms.regulariser import SHAPES, Shape
from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.core.bounds import NUMBER, SMALLEST
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards


class OrwCfmW2Config(AlgorithmConfig):
    name: str = setting("orw_cfm_w2", "online reward-weighted flow matching + W2")
    tau: float = setting(1.0, "inverse temperature of the weights exp(tau * R)", ge=0, le=NUMBER)
    beta: float = setting(1.0, "coefficient of the divergence", ge=0, le=NUMBER)
    scale: Scale = setting("none", "divisor of R before tau: none, or a standard deviation")


class OrwCfmW2(Algorithm):
    Config: ClassVar[type[OrwCfmW2Config]] = OrwCfmW2Config
    config: OrwCfmW2Config
    shapes: ClassVar[tuple[Shape, ...]] = SHAPES
    shape: ClassVar[Shape | None] = "constant"
    beta0_key: ClassVar[str | None] = "beta"
    when_equal: ClassVar[str] = "all their samples weigh the same"
    asks_surrogate = False

    def credit(self, rewards: Rewards) -> Credit:
        total_PG = combined(rewards, self.config.combine)
        centred_PG = advantages(total_PG, rewards.mask_PG, scale=self.config.scale)
        # A softmax over the group times its size: exp(tau * R) with mean 1, without overflow.
        logits_PG = torch.where(rewards.mask_PG, self.config.tau * centred_PG, -torch.inf)
        w_PG = logits_PG.softmax(1) * rewards.mask_PG.sum(1, keepdim=True)
        w_PG = torch.where(rewards.mask_PG, w_PG, 0.0)
        beta_S = self.added_betas(rewards, total_PG)
        beta = self.config.beta if beta_S is None else beta_S
        return plain_credit(w_PG.flatten(), beta, rewards)

    def curvature(self, advantage: float, beta: float) -> float | None:
        """w + beta: w is above 0, and as small as the rewards make it."""
        return SMALLEST + beta

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        supervised_N = terms.supervised()
        w_N = credit.advantage.to(supervised_N)
        return included_sum(w_N * supervised_N + terms.penalty(credit), credit)
