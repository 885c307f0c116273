"""The gate of the regulariser: only samples on which the reward and others disagree are held.

The formula is read from the released code of GARDO (arXiv 2512.24138), github.com/tinnerhrhe/GARDO,
scripts/train_sd3_grpo_gardo.py at 1cc77fb: all samples of an iteration are ranked by the reward and
by each of the others; u is the rank by the reward less the mean of the other ranks; the threshold
is the (1 - share)-quantile of those u that are not negative; the gate is open where u is above it.

Departures. Ranks lie in -1 ... 1 with ties averaged; there they are counted from the best, in an
arbitrary order of equal ones. So `side = "underrated"` is the sign of that code, whose u is above 0
where the reward places a sample lower than the others do; "overrated" is what a hacked reward does.
The share is fixed; there it begins at 0.1 and moves between 0.02 and 0.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from adrpo_scale.algorithms.ranks import ranks
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.core.types import Rewards

DECIMALS = 9  # of ranks: a 0 that is rounded to -1e-17 would be on the other side

Side = Literal["overrated", "underrated"]


class GateConfig(Section):
    """Which samples the regulariser holds; all of them unless `share` is stated."""

    share: float | None = setting(
        None,
        "share of the samples on that side that are held, those that disagree most; unset: no gate",
        before=None,
        gt=0,
        le=1,
    )
    side: Side = setting(
        "overrated",
        "overrated: ranked higher by the reward than by those with use = gate; underrated: lower",
        before="overrated",
    )

    @property
    def is_on(self) -> bool:
        return self.share is not None


def disagreement(total_PG: Tensor, mask_PG: Tensor, gates_RPG: Tensor) -> Tensor:
    """Rank of each sample among all of the iteration by the reward, less the mean of its ranks by
    the gates; float64 [S], in -2 ... 2.

    gates_RPG: NaN where a gate did not score the sample; such a rank is left out of the mean. NaN
    where no gate did, and for masked samples.
    """
    mask_S = mask_PG.flatten()
    others_RS = gates_RPG.flatten(1)
    known_RS = others_RS.isfinite() & mask_S
    sums_S = sum(
        (ranks(*plane) for plane in zip(others_RS, known_RS, strict=True)),
        start=torch.zeros(len(mask_S), dtype=torch.float64),
    )
    apart_S = ranks(total_PG.flatten(), mask_S) - sums_S / known_RS.sum(0)
    return torch.where(known_RS.any(0), apart_S.round(decimals=DECIMALS), torch.nan)


def is_open(rewards: Rewards, total_PG: Tensor, share: float, side: Side) -> Tensor:
    """Whether each sample is held, bool [S]. One that no gate scored is held."""
    if rewards.gates_RPG is None:
        return torch.ones_like(rewards.mask_PG).flatten()
    apart_S = disagreement(total_PG, rewards.mask_PG, rewards.gates_RPG)
    apart_S = apart_S if side == "overrated" else -apart_S
    on_that_side = apart_S[apart_S >= 0]
    if not len(on_that_side):
        return apart_S.isnan()
    threshold = on_that_side.quantile(1 - share).round(decimals=DECIMALS)
    return apart_S.isnan() | (apart_S > threshold)
