"""Regression terms with the predictions themselves, for losses that need more than mean squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adrpo_scale.algorithms.terms import RegressionTerms, values_of


@dataclass(frozen=True)
class VelocityTerms(RegressionTerms):
    """`RegressionTerms` of a flow, with its velocities.

    prediction_NE, target_NE: float32 [N, E], of the policy and of the sample, E latent elements.
    reference_NE: of the reference; None where it was not measured. noise_N: float32 [N], the share
    of noise at which they were taken (diffusers' sigma, 1 - t in the paper's time).
    """

    name: ClassVar[str] = "velocities"

    prediction_NE: Tensor | None = None
    target_NE: Tensor | None = None
    reference_NE: Tensor | None = None
    noise_N: Tensor | None = None

    @classmethod
    def of(
        cls,
        terms: RegressionTerms,
        prediction: Tensor,
        target: Tensor,
        reference: Tensor | None,
        noise_N: Tensor,
    ) -> VelocityTerms:
        """The terms with their velocities, of any shape [N, ...]."""
        return cls(
            **values_of(terms),
            prediction_NE=prediction.flatten(1),
            target_NE=target.flatten(1),
            reference_NE=None if reference is None else reference.flatten(1),
            noise_N=noise_N,
        )
