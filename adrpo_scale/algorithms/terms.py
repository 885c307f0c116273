"""Terms: the numbers that a domain measures of the N rows of a micro-batch, for the loss.

There are two kinds. A domain names those that it gives (`Domain.gives`), an algorithm those that it
takes (`Algorithm.takes`), and a run uses the first that both name. Both kinds compute the same
quantities of every row, so a loss is written once for both:

    quantity [N]    RegressionTerms                     LikelihoodTerms
                    squared errors: flow matching       log-probabilities of segments: tokens

    surrogate       A_clip · |v - u|²                   clipped ratio with A, mean of tokens
    penalty         beta · |v - v_ref|²                 beta · KL, mean of tokens
    supervised      |v - u|²                            - log p, mean of tokens
    log_ratio       - (|v - u|² - |v_ref - u|²) / 2     log p - log p_ref, sum of tokens

v is the policy's prediction, u its target, v_ref the reference's prediction; |.|² is a mean over
elements. Surrogate and penalty are eq. 6 of arXiv 2510.18053 on the left, eq. 3 and 7 on the right.
Where the reference moves, the divergence from the base is measured beside (`base_divergence`).
A segment is a part of a sample that was drawn on its own: a token of a completion. K counts the
segments of all rows, packed without padding. Gradients flow into the policy's numbers alone.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from adrpo_scale.algorithms.tokens import (
    Aggregation,
    Estimator,
    importance_weights,
    kl_estimate,
    per_row,
    ratio_surrogate,
)
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.python_warnings import SettingsWarning
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.core.types import Credit


class LikelihoodSettings(Section):
    """Settings by which log-probabilities of segments become numbers of rows. `RegressionTerms`
    takes them too and uses none."""

    clip_low: float = setting(0.2, "tokens: the ratio is clipped below 1 - clip_low", ge=0, lt=1)
    clip_high: float = setting(
        0.2, "tokens: the ratio is clipped above 1 + clip_high", ge=0, le=NUMBER
    )
    aggregation: Aggregation = setting(
        "sequence", "tokens: mean over each completion first, or over all tokens at once"
    )
    kl_estimator: Estimator = setting(
        "k3",
        "tokens: estimate of KL(policy || reference) per token (the paper: D_KL alone), or the KL "
        "over the whole vocabulary",
    )
    entropy_coef: float = setting(
        0.0, "tokens: bonus for the mean entropy of each token", ge=0, le=NUMBER
    )
    importance_cap: float = setting(
        2.0,
        "tokens: cap of the weights that correct for rollouts of another program (vLLM)",
        gt=0,
        le=NUMBER,
    )


DEFAULTS = LikelihoodSettings()


class Terms(ABC):
    """The quantities of a loss; see the table in the module docstring."""

    name: ClassVar[str]  # in errors
    bound: ClassVar[str]  # the condition of `is_bounded`, and its reason
    compares_with_old: ClassVar[bool]  # whether `surrogate` needs the policy of the rollout
    # Whether the random draws of all updates are those of the iteration's first.
    same_draws: ClassVar[bool] = False

    @classmethod
    def asked_with(cls, settings: Section) -> type[Terms]:
        """The type to ask the domain for, where the algorithm has these settings."""
        return cls

    @classmethod
    def check(cls, settings: LikelihoodSettings) -> None:
        """Warns of settings whose effect differs from what their names suggest."""
        return None

    @classmethod
    @abstractmethod
    def is_bounded(cls, advantage: float, beta: float) -> bool:
        """Whether surrogate + penalty of a row with this clipped advantage and this beta has a
        lower bound; without one, the loss diverges after enough updates."""

    @classmethod
    @abstractmethod
    def counts(cls, include_N: Tensor, segments_N: Tensor, settings: LikelihoodSettings) -> Tensor:
        """Contribution of each row to the divisor of the sum of surrogates; float64 [N].

        include_N: `Credit.include`. segments_N: int64, number of segments of each row."""

    @abstractmethod
    def surrogate(self, credit: Credit, settings: LikelihoodSettings = DEFAULTS) -> Tensor:
        """[N]: pushes the policy towards rows of positive advantage and away from others."""

    @abstractmethod
    def divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        """[N]: divergence of the policy from the reference; None where the reference was not
        measured. The log has it with the default settings."""

    @abstractmethod
    def base_divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        """[N]: divergence of the policy from the base; None where that was not measured on its own,
        as where the reference is the base."""

    @abstractmethod
    def supervised(self) -> Tensor:
        """[N]: the loss of plain supervised training on the rows, independent of their credit."""

    @abstractmethod
    def log_ratio(self) -> Tensor:
        """[N]: log-likelihood of the row under the policy less that under the reference. A squared
        error counts as that of a normal distribution with variance 1."""

    @abstractmethod
    def entropies(self) -> tuple[Tensor, Tensor] | None:
        """(entropy_K, segment_K) of the policy's distributions, for the log; None without any."""

    def penalty(self, credit: Credit, settings: LikelihoodSettings = DEFAULTS) -> Tensor:
        """[N]: beta · divergence; the scalar 0 where the reference was not measured, because every
        beta is 0."""
        divergence_N = self.divergence(settings)
        if divergence_N is None:
            return torch.zeros(())
        return credit.beta.to(divergence_N) * divergence_N


@dataclass(frozen=True)
class RegressionTerms(Terms):
    """Mean squared errors of a prediction, [N] each (flow matching; eq. 5, 6).

    error_N: policy against target. divergence_N: policy against reference. reference_error_N:
    reference against target. These two are None where the reference was not measured.
    base_divergence_N: policy against base, where that was measured on its own.
    """

    name = "squared errors"
    bound = (
        "A_clip + beta must be above 0, because it is the curvature of a row's loss in the "
        "prediction (eq. 6)"
    )
    compares_with_old = False

    error_N: Tensor
    divergence_N: Tensor | None = None
    reference_error_N: Tensor | None = None
    base_divergence_N: Tensor | None = None

    @classmethod
    def is_bounded(cls, advantage: float, beta: float) -> bool:
        return advantage + beta > 0

    @classmethod
    def counts(cls, include_N: Tensor, segments_N: Tensor, settings: LikelihoodSettings) -> Tensor:
        """1 for every included row: its error is a mean already."""
        return include_N

    def surrogate(self, credit: Credit, settings: LikelihoodSettings = DEFAULTS) -> Tensor:
        """A_clip · error. With the unclipped advantage eq. 6 would not be convex."""
        return credit.advantage_clipped.to(self.error_N) * self.error_N

    def divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        return self.divergence_N

    def base_divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        return self.base_divergence_N

    def supervised(self) -> Tensor:
        return self.error_N

    def log_ratio(self) -> Tensor:
        return (measured(self.reference_error_N, "reference_error_N") - self.error_N) / 2

    def entropies(self) -> None:
        return None


@dataclass(frozen=True)
class LikelihoodTerms(Terms):
    """Log-probabilities of the K segments of `rows` rows, float32 [K] each (eq. 3, 7).

    logp_K: under the policy. logp_old_K: under the policy before the iteration's first step.
    segment_K: int64, the row that each segment belongs to. logp_ref_K: under the reference; None
    where it was not measured. logp_rollout_K: under another program that drew the segments (vLLM);
    None where the policy drew them. entropy_K: of the policy's distributions; None where the domain
    does not measure it. logp_base_K: under the base, where that was measured on its own.
    """

    name = "log-probabilities"
    bound = (
        "beta must not be below 0, because -KL has no lower bound (the paper's table 3 goes to "
        "advantage_max = 2 * beta0)"
    )
    compares_with_old = True

    rows: int
    logp_K: Tensor
    logp_old_K: Tensor
    segment_K: Tensor
    logp_ref_K: Tensor | None = None
    logp_rollout_K: Tensor | None = None
    entropy_K: Tensor | None = None
    logp_base_K: Tensor | None = None

    @classmethod
    def asked_with(cls, settings: Section) -> type[Terms]:
        is_exact = getattr(settings, "kl_estimator", "") == "exact"
        return ExactLikelihoodTerms if is_exact else cls

    @classmethod
    def check(cls, settings: LikelihoodSettings) -> None:
        if settings.kl_estimator == "k1":
            warnings.warn(
                'algorithm.kl_estimator = "k1": its expected on-policy gradient is zero, so it '
                "does not hold the policy to the reference, and under ADRPO it adds to the policy "
                "gradient; use k3 (the default), k2 or exact",
                category=SettingsWarning,
                stacklevel=4,
            )

    @classmethod
    def is_bounded(cls, advantage: float, beta: float) -> bool:
        return beta >= 0

    @classmethod
    def counts(cls, include_N: Tensor, segments_N: Tensor, settings: LikelihoodSettings) -> Tensor:
        """1 for each included row, or its number of segments with aggregation "token"."""
        by_token = settings.aggregation == "token"
        return include_N * segments_N.to(include_N) if by_token else include_N

    def surrogate(self, credit: Credit, settings: LikelihoodSettings = DEFAULTS) -> Tensor:
        """The clipped ratio with the unclipped A (eq. 3, 7), less the entropy bonus."""
        advantage_K = credit.advantage.to(self.logp_K)[self.segment_K]
        surrogate_K = ratio_surrogate(
            self.logp_K, self.logp_old_K, advantage_K, settings.clip_low, settings.clip_high
        )
        if self.logp_rollout_K is not None:
            surrogate_K = surrogate_K * importance_weights(
                self.logp_old_K, self.logp_rollout_K, settings.importance_cap
            )
        if settings.entropy_coef:
            entropy_K = measured(self.entropy_K, "entropy_K")
            surrogate_K = surrogate_K - settings.entropy_coef * entropy_K
        return self._per_row(surrogate_K, settings.aggregation)

    def divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        return self._divergence_from(self.logp_ref_K, settings)

    def base_divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        return self._divergence_from(self.logp_base_K, settings)

    def _divergence_from(
        self, logp_other_K: Tensor | None, settings: LikelihoodSettings
    ) -> Tensor | None:
        if logp_other_K is None:
            return None
        kl_K = kl_estimate(self.logp_K, logp_other_K, settings.kl_estimator)
        return self._per_row(kl_K, settings.aggregation)

    def supervised(self) -> Tensor:
        return -self._per_row(self.logp_K, "sequence")

    def log_ratio(self) -> Tensor:
        logp_ref_K = measured(self.logp_ref_K, "logp_ref_K")
        return self._per_row(self.logp_K, "token") - self._per_row(logp_ref_K, "token")

    def entropies(self) -> tuple[Tensor, Tensor] | None:
        return None if self.entropy_K is None else (self.entropy_K, self.segment_K)

    def _per_row(self, values_K: Tensor, aggregation: Aggregation) -> Tensor:
        return per_row(values_K, self.segment_K, self.rows, aggregation)


@dataclass(frozen=True)
class ExactLikelihoodTerms(LikelihoodTerms):
    """`LikelihoodTerms` with the KL over the whole vocabulary, for `kl_estimator = "exact"`.

    kl_K: KL(policy || reference) of the distribution that each segment was drawn from, float32
    [K], never negative; None where the reference was not measured. Its gradient is the KL's own,
    at the states that were visited: as with every estimator, it does not follow how a segment
    changes the states after it (arXiv 2506.09477).

    The divergence of every caller is the exact one, the log's with default settings too: it is the
    mean that k3 estimates on policy, without the noise of the drawn segments. Evaluations ask for
    `LikelihoodTerms`, so their `kl` is k3's whatever the estimator of the run, and so is the
    divergence from a base beside a reference that moves.
    """

    kl_K: Tensor | None = None

    @classmethod
    def of(cls, terms: LikelihoodTerms, kl_K: Tensor | None) -> ExactLikelihoodTerms:
        """The terms with their KL."""
        return cls(**values_of(terms), kl_K=kl_K)

    def divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        return None if self.kl_K is None else self._per_row(self.kl_K, settings.aggregation)

    def base_divergence(self, settings: LikelihoodSettings = DEFAULTS) -> Tensor | None:
        """By k3: the whole vocabulary is compared with the reference alone."""
        drawn = settings.model_copy(update={"kl_estimator": "k3"})
        return super().base_divergence(drawn)


def values_of(terms: RegressionTerms | LikelihoodTerms) -> dict[str, Any]:
    """The fields of terms by name, for terms of a type derived from theirs."""
    return {field.name: getattr(terms, field.name) for field in fields(terms)}


def measured(values: Tensor | None, name: str) -> Tensor:
    """The values; ValueError where the domain did not measure them."""
    if values is None:
        raise ValueError(
            f"the loss asks for {name}, which was not measured: the reference is measured where "
            "`Algorithm.needs_reference` returns True, entropies where the domain has them"
        )
    return values
