"""Advantage-weighted matching (arXiv 2509.25050) as released: a ratio of errors, clipped.

With e a sample's mean squared error, e_old that of the policy before the iteration's first step at
the same x0 and t, σ the share of noise, A the advantage clipped to ± c and divided by c = `clip`,
b the setting `beta0` and ε = `clip_range`,

    log p = - σ / p · ((e + δ)^p - δ^p)      "ghuber", p = `power`, δ = 1e-10
    log p = - e                              "uniform"
    r     = exp(log p - log p_old)
    loss  = - min(A · r, A · clip(r, 1 ± ε)) + b · |v - v_ref|²

x0 and t are the same in all updates of an iteration, and e_old is measured once for all of them. At
the first update r is 1: the gradient is that of `grpo` with A times the weight of the error, which
is 1 for "uniform" and σ · (e + δ)^(p - 1) for "ghuber".

Read from `scripts/train_sd3_awm.py` and `config/` of github.com/scxue/advantage_weighted_matching
at 12b1397, which takes one optimizer step a rollout. Its reference is an average whose decay is
min(0.3, 0.001 · iterations), beside a penalty of 0.003 to the base: settings of [reference].
Departures: t is drawn uniformly in place of the sampler's own times, samples come from an ODE,
standard deviations have ddof 1, and gradients are clipped and reduced as in every algorithm here.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from pydantic import model_validator
from torch import Tensor

from adrpo_scale.algorithms.base import included_sum
from adrpo_scale.algorithms.divided import Divided, DividedConfig
from adrpo_scale.algorithms.old_error_terms import OldErrorTerms
from adrpo_scale.algorithms.terms import Terms, measured
from adrpo_scale.algorithms.tokens import ratio_surrogate
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Credit

DELTA = 1e-10  # added to an error before its power
POWER = 0.25  # from released code


class AwmConfig(DividedConfig):
    name: str = setting("awm", "advantage-weighted matching: a clipped ratio of errors")
    beta0: float = setting(  # from released code
        1.0, "coefficient of the divergence from the reference", gt=0, le=NUMBER
    )
    weighting: Literal["ghuber", "uniform"] = setting(  # from released code
        "ghuber", "log p of an error: a power of it times the share of noise, or the error itself"
    )
    power: float = setting(POWER, "ghuber: the power of the error", gt=0, le=1)
    clip_range: float = setting(  # from released code
        1.0, "the ratio is clipped to 1 ± clip_range", gt=0, le=NUMBER
    )

    @model_validator(mode="after")
    def _power_goes_with_ghuber(self) -> AwmConfig:
        if self.weighting == "uniform" and self.power != POWER:
            raise ValueError(
                f'power = {self.power} with weighting = "uniform", which has none: leave power '
                'out, or set weighting = "ghuber"'
            )
        return self


class Awm(Divided):
    Config: ClassVar[type[AwmConfig]] = AwmConfig
    config: AwmConfig
    takes: ClassVar[tuple[type[Terms], ...]] = (OldErrorTerms,)
    released_reference: ClassVar[str] = "decay = 0.3 and ramp = 0.001"
    plain: ClassVar[str] = "grpo"

    def beta(self, divided_S: Tensor) -> float:
        return self.config.beta0

    def log_probability(self, error_N: Tensor, noise_N: Tensor) -> Tensor:
        """[N]: log p of mean squared errors, up to a constant."""
        if self.config.weighting == "uniform":
            return -error_N
        p = self.config.power
        return -noise_N / p * ((error_N + DELTA) ** p - DELTA**p)

    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        terms, clip = cast(OldErrorTerms, terms), self.config.clip_range
        noise_N = measured(terms.noise_N, "noise_N")
        logp_N = self.log_probability(terms.error_N, noise_N)
        old_N = self.log_probability(measured(terms.old_error_N, "old_error_N"), noise_N)
        advantage_N = credit.advantage_clipped.to(logp_N)
        surrogate_N = ratio_surrogate(logp_N, old_N, advantage_N, clip, clip)
        return included_sum(surrogate_N + terms.penalty(credit), credit)
