"""DiffusionNFT (arXiv 2509.16117) as released: contrasts two mixtures of policy and reference.

With u a sample's velocity, v the policy's, v_old that of the reference that drew the sample, b the
setting `beta0`, σ the share of noise, and r = (clip(A, ± c) / c + 1) / 2 with c = `clip`,

    v₊ = b · v + (1 - b) · v_old          v₋ = (1 + b) · v_old - b · v
    loss = c / b · ( r · w₊ · |σ(v₊ - u)|² + (1 - r) · w₋ · |σ(v₋ - u)|² )
    w± = 1 / max(mean |σ(v± - u)|, 1e-5), without gradient

where |.|² is a mean over latent elements, and σ(v± - u) is the error of the predicted sample. The
weights aside this is eq. 6 of arXiv 2510.18053 with a reference that moves (beta0 = b, A = 2r - 1):
`adrpo` with `[reference] kind = "ema"` is that plain form.

Read from `scripts/train_nft_sd3.py` and `config/` of github.com/NVlabs/DiffusionNFT at 24af555.
Departures: t is drawn uniformly in place of the sampler's own times, and gradients are clipped and
reduced as in every algorithm here.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
from torch import Tensor

from adrpo_scale.algorithms.base import Source, included_sum
from adrpo_scale.algorithms.divided import Divided, DividedConfig
from adrpo_scale.algorithms.terms import Terms, measured
from adrpo_scale.algorithms.velocity_terms import VelocityTerms
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit

SMALLEST_ERROR = 1e-5  # of a row, in its weight


class NftConfig(DividedConfig):
    name: str = setting("nft", "DiffusionNFT: contrasts mixtures of policy and reference")
    beta0: float = setting(
        1.0, "b: the policy's share in the two mixtures (released: 1, or 0.1)", gt=0, le=NUMBER
    )
    rollouts: Source = setting(
        "reference", "the model that generates the samples; released: the reference"
    )


class Nft(Divided):
    Config: ClassVar[type[NftConfig]] = NftConfig
    config: NftConfig
    takes: ClassVar[tuple[type[Terms], ...]] = (VelocityTerms,)
    asks_surrogate = False
    released_reference: ClassVar[str] = "decay = 0.5 and ramp = 0.001"
    plain: ClassVar[str] = "adrpo"

    def beta(self, divided_S: Tensor) -> Tensor:
        """As in eq. 6."""
        return self.config.beta0 - divided_S

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        terms, b = cast(VelocityTerms, terms), self.config.beta0
        v = measured(terms.prediction_NE, "prediction_NE")
        v_old = measured(terms.reference_NE, "reference_NE")
        r_N = (credit.advantage_clipped.to(v) + 1) / 2
        positive_N = weighted_error(terms, b * v + (1 - b) * v_old)
        negative_N = weighted_error(terms, (1 + b) * v_old - b * v)
        contrast_N = r_N * positive_N + (1 - r_N) * negative_N
        return self.config.clip / b * included_sum(contrast_N, credit)


def weighted_error(terms: VelocityTerms, velocity_NE: Tensor) -> Tensor:
    """[N]: mean squared error of the sample that a velocity predicts, divided by its mean absolute
    error, which gets no gradient."""
    off_NE = velocity_NE - measured(terms.target_NE, "target_NE")
    off_NE = measured(terms.noise_N, "noise_N")[:, None] * off_NE
    with torch.no_grad():
        size_N = off_NE.abs().mean(1).clamp(min=SMALLEST_ERROR)
    return off_NE.square().mean(1) / size_N
