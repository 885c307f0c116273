"""The contract of an algorithm, and the part that ADRPO and its fixed-beta control share.

An algorithm answers three questions and knows nothing of models, engines or ranks:

    credit(rewards)          what each of the S samples is worth, computed alike on every rank
    select(rewards, credit)  which samples are trained on, in which order; pairs adjacent
    loss(terms, credit)      the sum over rows of surrogate + beta * divergence

The trainer divides the loss by the global count (`row_counts` summed over all ranks), so loss and
gradients depend neither on the number of processes nor on the micro-batch size.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from adrpo_scale.algorithms.advantages import Baseline, Combine, Scale, advantages, combined
from adrpo_scale.algorithms.tokens import (
    Aggregation,
    Estimator,
    importance_weights,
    kl_estimate,
    per_row,
    ratio_surrogate,
)
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Credit, Rewards, Terms

Kind = Literal["flow", "tokens"]


class AlgorithmConfig(Section):
    """What every algorithm has."""

    name: str = setting(REQUIRED, "which algorithm; your own by import path")
    combine: Combine = setting(
        "sum", "how several rewards become one: weighted sum, or each normalised by its group first"
    )


class Algorithm(ABC):
    """See the module docstring. kind: "flow" or "tokens", what the domain generates."""

    needs: frozenset[str] = frozenset({"divergence"})  # what `Terms` must carry beyond the score
    rows_per_unit: int = 1  # rows that must stay together: 2 where pairs are trained on
    rollouts: Literal["policy", "reference"] = "policy"  # who generates the samples
    rollout_pool: int = 0  # iterations of rollouts made once and used again; 0 = always afresh

    def __init__(self, config: AlgorithmConfig, kind: Kind) -> None:
        self.kind = kind

    @abstractmethod
    def credit(self, rewards: Rewards) -> Credit:
        """Credit of all S samples, the same on every rank."""

    def select(self, rewards: Rewards, credit: Credit) -> Tensor:
        """Ids of the samples to train on, int64 [M]: here every unmasked one, in order."""
        return credit.include.nonzero().flatten()

    @abstractmethod
    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        """Scalar: the sum over included rows (not yet divided by the global count)."""

    def row_counts(self, credit: Credit, lengths_N: Tensor | None = None) -> Tensor:
        """What each row adds to the global count, float64 [N]; lengths_N: tokens of each row."""
        return credit.include / self.rows_per_unit


def plain_credit(weight_S: Tensor, beta: Tensor | float, rewards: Rewards) -> Credit:
    """Credit where weight and clipped weight agree and nothing is paired."""
    return Credit(
        weight=weight_S,
        weight_clipped=weight_S,
        beta=torch.as_tensor(beta, dtype=torch.float64).expand_as(weight_S),
        pair_id=torch.full_like(weight_S, -1, dtype=torch.int64),
        include=rewards.included_PG.flatten().double(),
    )


def warn_of_flow_defaults(config: AlgorithmConfig, names: tuple[str, ...]) -> None:
    """Where tokens are trained on with defaults that are the paper's for flow matching."""
    silent = [name for name in names if name not in config.model_fields_set]
    if silent:
        values = ", ".join(f"{name} = {getattr(config, name)!r}" for name in silent)
        warnings.warn(
            f"algorithm: {values} by default, which is for flow matching; on tokens state it (the "
            'paper: beta0 = 0.04, clip range ±0.04, scale = "group_std"; dpo: beta = 0.1)',
            stacklevel=4,
        )


def included_sum(values_N: Tensor, credit: Credit) -> Tensor:
    """Sum of the included rows' values, in the dtype of the values."""
    return (credit.include.to(values_N) * values_N).sum()


class GroupRelativeConfig(AlgorithmConfig):
    """Settings of ADRPO and of GRPO, its control. Defaults: the paper's for flow matching."""

    beta0: float = setting(
        1.0,
        "baseline regularisation coefficient (the paper: 1 for flow matching, 0.04 for tokens)",
        paper="image experiments",
        ge=0,
    )
    advantage_min: float = setting(
        -1.0, "A_min: lower clip of the advantage (tokens: -0.04)", paper="image experiments"
    )
    advantage_max: float = setting(
        1.0, "A_max: upper clip of the advantage (tokens: 0.04)", paper="image experiments"
    )
    baseline: Baseline = setting(
        "group", "V(c): mean reward of the prompt's group, or of the batch"
    )
    scale: Scale = setting(
        "none", "what the advantage is divided by (tokens: group_std)", paper="Algorithm 1"
    )
    clip_low: float = setting(0.2, "tokens: the ratio is clipped below 1 - clip_low", ge=0, lt=1)
    clip_high: float = setting(0.2, "tokens: the ratio is clipped above 1 + clip_high", ge=0)
    aggregation: Aggregation = setting(
        "sequence", "tokens: mean over each completion first, or over all tokens at once"
    )
    kl_estimator: Estimator = setting(
        "k3", "tokens: estimate of KL(policy || reference) per token (the paper: D_KL alone)"
    )
    entropy_coef: float = setting(0.0, "tokens: bonus for the mean entropy of each token", ge=0)
    importance_cap: float = setting(
        2.0,
        "tokens: cap of the weights that correct for rollouts of another program (vLLM)",
        gt=0,
    )

    @model_validator(mode="after")
    def _clip_range_is_ordered(self) -> GroupRelativeConfig:
        if not self.advantage_min <= 0 <= self.advantage_max:
            raise ValueError(
                f"advantage_min = {self.advantage_min}, advantage_max = {self.advantage_max}: "
                "the clip range is reversed or leaves out 0, the advantage of a group of equal "
                "rewards; expected advantage_min <= 0 <= advantage_max"
            )
        return self


class GroupRelative(Algorithm):
    """Advantages within the group; loss = surrogate(A) + beta * divergence (eq. 3, 6, 7)."""

    Config: ClassVar[type[GroupRelativeConfig]] = GroupRelativeConfig

    def __init__(self, config: GroupRelativeConfig, kind: Kind) -> None:
        super().__init__(config, kind)
        self.config = config
        if kind == "tokens":
            self.needs = self.needs | {"logp_old"}
            warn_of_flow_defaults(config, ("beta0", "scale"))
            self._warn_of_k1()
        if kind == "flow" and config.beta0 <= 0:
            raise ConfigError(
                f"algorithm.beta0 = {config.beta0}: on flow matching it must be above 0, because "
                "beta0 is the curvature of the loss in the velocity (eq. 6); the paper uses 1"
            )

    def _warn_of_k1(self) -> None:
        if self.config.kl_estimator == "k1":
            warnings.warn(
                'algorithm.kl_estimator = "k1": its expected on-policy gradient is zero, so it '
                "does not hold the policy to the reference, and under ADRPO it adds to the policy "
                "gradient. Use k3 (the default) or k2",
                stacklevel=3,
            )

    @abstractmethod
    def beta(self, advantage_clipped: Tensor) -> Tensor:
        """Per-sample regularisation coefficient from the clipped advantage; same shape."""

    def credit(self, rewards: Rewards) -> Credit:
        config = self.config
        total_PG = combined(rewards, config.combine)
        weight = advantages(
            total_PG, rewards.mask_PG, baseline=config.baseline, scale=config.scale
        ).flatten()
        clipped = weight.clamp(config.advantage_min, config.advantage_max)
        credit = plain_credit(weight, self.beta(clipped), rewards)
        return Credit(weight, clipped, credit.beta, credit.pair_id, credit.include)

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        if terms.divergence_N is None:
            return included_sum(self.surrogate(terms, credit), credit)
        return included_sum(
            self.surrogate(terms, credit) + credit.beta.to(terms.score_N) * self.divergence(terms),
            credit,
        )

    def surrogate(self, terms: Terms, credit: Credit) -> Tensor:
        """[N]: on flow -A_clip * score, the clipped advantage keeps eq. 6 convex; on tokens the
        clipped ratio with the unclipped A (eq. 3, 7), less the entropy bonus."""
        if self.kind == "flow":
            return -credit.weight_clipped.to(terms.score_N) * terms.score_N
        assert terms.logp_K is not None and terms.logp_old_K is not None
        assert terms.segment_K is not None
        config = self.config
        advantage_K = credit.weight.to(terms.logp_K)[terms.segment_K]
        surrogate_K = ratio_surrogate(
            terms.logp_K, terms.logp_old_K, advantage_K, config.clip_low, config.clip_high
        )
        if terms.logp_rollout_K is not None:
            surrogate_K = surrogate_K * importance_weights(
                terms.logp_old_K, terms.logp_rollout_K, config.importance_cap
            )
        if config.entropy_coef:
            assert terms.entropy_K is not None
            surrogate_K = surrogate_K - config.entropy_coef * terms.entropy_K
        return per_row(surrogate_K, terms.segment_K, len(terms.score_N), config.aggregation)

    def divergence(self, terms: Terms) -> Tensor:
        """[N]: as the domain gives it; on tokens by the chosen estimator and aggregation."""
        assert terms.divergence_N is not None
        if self.kind == "flow":
            return terms.divergence_N
        assert terms.logp_K is not None and terms.logp_ref_K is not None
        assert terms.segment_K is not None
        kl_K = kl_estimate(terms.logp_K, terms.logp_ref_K, self.config.kl_estimator)
        return per_row(kl_K, terms.segment_K, len(terms.score_N), self.config.aggregation)

    def row_counts(self, credit: Credit, lengths_N: Tensor | None = None) -> Tensor:
        if self.kind == "tokens" and self.config.aggregation == "token":
            assert lengths_N is not None
            return credit.include * lengths_N.to(credit.include)
        return credit.include
