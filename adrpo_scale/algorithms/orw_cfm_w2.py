"""ORW-CFM-W2 (arXiv 2502.06061): online reward-weighted regression with a W2 bound.

loss = w · (-score) + beta · divergence with w = exp(tau · R) >= 0. The weights of a group are
normalised to mean 1 (neither paper says so: without it the step size follows the reward's offset),
so only differences of rewards within the group matter. tau = 0 is plain online flow matching plus
W2.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.advantages import Scale, advantages, combined
from adrpo_scale.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Kind,
    included_sum,
    plain_credit,
)
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards, Terms


class OrwCfmW2Config(AlgorithmConfig):
    name: str = setting("orw_cfm_w2", "online reward-weighted flow matching + W2")
    tau: float = setting(1.0, "inverse temperature of the weights exp(tau * R)", ge=0)
    beta: float = setting(1.0, "coefficient of the divergence", ge=0)
    scale: Scale = setting("none", "what R is divided by before tau: nothing or a std")


class OrwCfmW2(Algorithm):
    Config: ClassVar[type[OrwCfmW2Config]] = OrwCfmW2Config

    def __init__(self, config: OrwCfmW2Config, kind: Kind) -> None:
        super().__init__(config, kind)
        self.config = config

    def credit(self, rewards: Rewards) -> Credit:
        total_PG = combined(rewards, self.config.combine)
        centred = advantages(total_PG, rewards.mask_PG, scale=self.config.scale)
        # A softmax over the group times its size: exp(tau * R) with mean 1, without overflow.
        logits = torch.where(rewards.mask_PG, self.config.tau * centred, -torch.inf)
        weight_PG = logits.softmax(1) * rewards.mask_PG.sum(1, keepdim=True)
        weight_PG = torch.where(rewards.mask_PG, weight_PG, 0.0)
        return plain_credit(weight_PG.flatten(), self.config.beta, rewards)

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        rows = -credit.weight.to(terms.score_N) * terms.score_N
        if terms.divergence_N is not None:
            rows = rows + credit.beta.to(rows) * terms.divergence_N
        return included_sum(rows, credit)
