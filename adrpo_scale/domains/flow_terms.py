"""The errors and divergences of flow matching at the points that a draw chooses (eq. 5 and 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from adrpo_scale.algorithms.old_error_terms import OldErrorTerms
from adrpo_scale.algorithms.terms import RegressionTerms, Terms
from adrpo_scale.algorithms.velocity_terms import VelocityTerms
from adrpo_scale.core.seeding import Purpose, normal, uniform
from adrpo_scale.core.types import DrawKey, Rows

OLD_ERROR = "old_error"


@dataclass(frozen=True)
class Points:
    """Where rows are measured. x_t: float32 [N, C, H, W]; t_N: float32 [N], in the paper's time;
    u: the samples' velocity there, as x_t."""

    x_t: Tensor
    t_N: Tensor
    u: Tensor

    @classmethod
    def drawn(cls, x1: Tensor, x0: Tensor | None, noise_ids_N: Tensor, key: DrawKey) -> Self:
        """t and x0 of a key; x0: None draws one, otherwise it is the one given."""
        ids = noise_ids_N.tolist()
        if x0 is None:
            x0 = normal(key, ids, Purpose.TRAIN_NOISE, x1.shape[1:]).to(x1.device)
        t_N = uniform(key, ids, Purpose.TRAIN_TIME).to(x1.device)
        t = t_N.view(-1, 1, 1, 1)
        return cls((1 - t) * x0 + t * x1, t_N, x1 - x0)

    def errors(self, v: Tensor) -> Tensor:
        """[N]: mean squared error of a velocity."""
        return mean_square(v - self.u)

    def terms(
        self,
        v: Tensor,
        v_ref: Tensor | None,
        v_base: Tensor | None,
        rows: Rows,
        key: DrawKey,
        wanted: type[Terms],
    ) -> RegressionTerms:
        """Terms of the policy's velocity. v_ref, v_base: of the others, where they are measured."""
        terms = RegressionTerms(
            error_N=self.errors(v),
            divergence_N=None if v_ref is None else mean_square(v - v_ref),
            reference_error_N=None if v_ref is None else self.errors(v_ref),
            base_divergence_N=None if v_base is None else mean_square(v - v_base),
        )
        noise_N = 1 - self.t_N
        if wanted is VelocityTerms:
            return VelocityTerms.of(terms, v, self.u, v_ref, noise_N)
        if wanted is OldErrorTerms:
            old_ND = rows.tensors.get(OLD_ERROR)
            old_N = None if old_ND is None else old_ND[:, key.draw]
            return OldErrorTerms.of(terms, old_N, noise_N)
        return terms


def mean_square(difference: Tensor) -> Tensor:
    """[N]: mean over latent elements of the squares of [N, C, H, W]."""
    return difference.square().flatten(1).mean(1)
