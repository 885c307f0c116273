"""Regression terms beside the errors of an earlier policy, for losses with a ratio to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adrpo_scale.algorithms.terms import RegressionTerms, values_of


@dataclass(frozen=True)
class OldErrorTerms(RegressionTerms):
    """`RegressionTerms` of a flow, beside those of the policy before the iteration's first step.

    old_error_N: float32 [N], its errors at the same x0 and t, without gradient. So these are the
    same in all updates of an iteration. noise_N: float32 [N], the share of noise at which errors
    were taken (diffusers' sigma, 1 - t in the paper's time).
    """

    name: ClassVar[str] = "squared errors of two policies at the same draws"
    compares_with_old: ClassVar[bool] = True
    same_draws: ClassVar[bool] = True

    old_error_N: Tensor | None = None
    noise_N: Tensor | None = None

    @classmethod
    def of(
        cls, terms: RegressionTerms, old_error_N: Tensor | None, noise_N: Tensor
    ) -> OldErrorTerms:
        """The terms with old errors; None: the policy is the old one."""
        if old_error_N is None:
            old_error_N = terms.error_N.detach()
        return cls(**values_of(terms), old_error_N=old_error_N, noise_N=noise_N)
