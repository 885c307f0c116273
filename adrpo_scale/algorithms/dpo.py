"""DPO (arXiv 2305.18290) and Diffusion-DPO (arXiv 2311.12908) on pairs of one group.

The k-th best sample of a group is paired with its k-th worst; a tie gives no pair. With log_ratio
the log-likelihood under the policy less that under the reference,

    loss of a pair = -log sigmoid(beta · (log_ratio of the winner - log_ratio of the loser))

The log-likelihood is a sum of log-probabilities on tokens, and -1/2 of the mean squared error on
flow matching; winner and loser share t and x0. Online: pairs of new rollouts. Offline: pairs rolled
out once from the base (`rollouts = "base"`, a pool of `pool` iterations that is reused), or given
by the rows of a file (`rollouts = "file"`).

[regulariser] may add to each pair the mean of its two beta_i · divergence_i. Its beta0 has nothing
to do with `beta`, the sharpness of the preference.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from adrpo_scale.algorithms.advantages import best_with_worst, combined
from adrpo_scale.algorithms.base import (
    Algorithm,
    AlgorithmConfig,
    Source,
    Stated,
    included_sum,
    plain_credit,
)
from adrpo_scale.algorithms.regulariser import SHAPES, Shape
from adrpo_scale.algorithms.terms import LikelihoodTerms, Terms
from adrpo_scale.core.bounds import COUNT, NUMBER, SAMPLES
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards


class DpoConfig(AlgorithmConfig):
    name: str = setting("dpo", "Direct Preference Optimization, on pairs of a group")
    beta: float = setting(
        2000.0, "sharpness of the preference (flow: thousands, tokens: 0.1)", gt=0, le=NUMBER
    )
    pairs_per_group: int = setting(
        1, "pairs made of each group, best with worst first", ge=1, le=SAMPLES
    )
    rollouts: Source = setting(
        "policy", "online pairs from the policy, pairs of the reference or the base, or file: given"
    )
    pool: int = setting(
        0, "offline: iterations of rollouts that are made once and reused", ge=0, le=COUNT
    )


class Dpo(Algorithm):
    Config: ClassVar[type[DpoConfig]] = DpoConfig
    config: DpoConfig
    shapes: ClassVar[tuple[Shape, ...]] = SHAPES
    when_equal: ClassVar[str] = "they give no pair"
    must_state: ClassVar = {LikelihoodTerms: Stated(("beta",), "beta = 0.1 (arXiv 2305.18290)")}
    takes_pairs: ClassVar[bool] = True
    asks_surrogate = False
    rows_per_unit = 2

    def credit(self, rewards: Rewards) -> Credit:
        """The advantage is +1 for winners, -1 for losers; pair_id is the winner's sample id."""
        total_PG = combined(rewards, self.config.combine)
        pairs = best_with_worst(total_PG, rewards.included_PG, self.config.pairs_per_group)
        advantage_S = torch.zeros(total_PG.numel(), dtype=torch.float64)
        advantage_S[pairs] = torch.tensor([1.0, -1.0], dtype=torch.float64)
        pair_id_S = torch.full((total_PG.numel(),), -1, dtype=torch.int64)
        pair_id_S[pairs] = pairs[:, :1]
        beta_S = self.added_betas(rewards, total_PG)
        credit = plain_credit(advantage_S, self.config.beta if beta_S is None else beta_S, rewards)
        return dataclasses.replace(credit, pair_id=pair_id_S)

    def select(self, rewards: Rewards, credit: Credit) -> Tensor:
        """Ids of winner, loser, winner, loser, ..., int64 [2 · pairs]."""
        winners = (credit.advantage > 0).nonzero().flatten()
        losers = (credit.advantage < 0).nonzero().flatten()
        by_pair = losers[credit.pair_id[losers].argsort()]
        return torch.stack([winners, by_pair], 1).flatten()

    def needs_reference(self, credit: Credit) -> bool:
        """Always: the ratio is to it."""
        return True

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        winner, loser = terms.log_ratio().unflatten(0, (-1, 2)).unbind(1)
        winners = credit.take(torch.arange(0, len(credit.include), 2))
        loss_M = -logsigmoid(self.config.beta * (winner - loser))
        if self.regulariser is not None:
            loss_M = loss_M + terms.penalty(credit).unflatten(0, (-1, 2)).mean(1)
        return included_sum(loss_M, winners)
