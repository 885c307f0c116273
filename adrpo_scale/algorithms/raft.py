"""RAFT (arXiv 2304.06767): supervised training on the best sample of each group, no divergence.

[regulariser] may add one: Σ beta_i · divergence_i over the winners. With the group's mean as
baseline a winner's A is never below 0, so the paper's sign is weakest exactly where RAFT trains.

A group whose samples are all masked has no winner; among equal rewards the first sample wins. On
given pairs (`rollouts = "file"`) it is supervised training on the chosen answers.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.advantages import combined
from adrpo_scale.algorithms.base import Algorithm, AlgorithmConfig, included_sum, plain_credit
from adrpo_scale.algorithms.regulariser import SHAPES, Shape
from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit, Rewards


class RaftConfig(AlgorithmConfig):
    name: str = setting("raft", "Reward rAnked FineTuning: the best of each group")


class Raft(Algorithm):
    Config: ClassVar[type[RaftConfig]] = RaftConfig
    shapes: ClassVar[tuple[Shape, ...]] = SHAPES
    when_equal: ClassVar[str] = "the first sample of each is trained on as if it were the best"
    takes_pairs: ClassVar[bool] = True
    asks_surrogate = False

    def credit(self, rewards: Rewards) -> Credit:
        """The advantage is 1 for the winner of a group and 0 for the others."""
        total_PG = combined(rewards, self.config.combine)
        best_P = torch.where(rewards.included_PG, total_PG, -torch.inf).argmax(1)
        wins_PG = torch.zeros_like(total_PG).scatter(1, best_P[:, None], 1.0)
        beta_S = self.added_betas(rewards, total_PG)
        beta = 0.0 if beta_S is None else beta_S
        return plain_credit((wins_PG * rewards.included_PG).flatten(), beta, rewards)

    def limits(self, beta0: float) -> tuple[float, float]:
        """A winner's A is not below its group's mean."""
        low, high = super().limits(beta0)
        of_group = self.regulariser is not None and self.regulariser.baseline == "group"
        return (0.0 if of_group else low), high

    def curvature(self, advantage: float, beta: float) -> float | None:
        return 1 + beta

    def select(self, rewards: Rewards, credit: Credit) -> Tensor:
        return credit.advantage.nonzero().flatten()

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        if self.regulariser is None:
            return included_sum(terms.supervised(), credit)
        return included_sum(terms.supervised() + terms.penalty(credit), credit)
