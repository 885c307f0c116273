"""The regulariser: how the coefficient beta_i of each sample's divergence is chosen.

With beta0 the base value, A a sample's advantage, A_clip the clipped one, and r its rank by reward
in its group, from -1 (worst) to +1 (best), beta_i is

    shape       sign = "paper"          sign = "opposite"
    constant    beta0                   (refused)
    clip        beta0 - A_clip          beta0 + A_clip          (paper: eq. 4 of arXiv 2510.18053)
    tanh        beta0 · (1 - tanh A)    beta0 · (1 + tanh A)
    rank        beta0 · (1 - r)         beta0 · (1 + r)

tanh bends A_clip where squared errors are trained on, because eq. 6 is convex only while both of
its terms have the same clipped A, and the unclipped A where log-probabilities are.

ADRPO and GRPO have A, its clip and beta0 in [algorithm] already, and their names state shape and
sign. ORW-CFM-W2 has beta0 as its `beta`. To RAFT and DPO the regulariser is an addition to the
loss, Σ beta_i · divergence_i over the rows that they train on (of a pair: the mean of its two).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from adrpo_scale.algorithms.advantages import Baseline, Scale, advantages
from adrpo_scale.algorithms.gate import GateConfig, is_open
from adrpo_scale.algorithms.ranks import group_ranks
from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.core.bounds import NUMBER
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.core.types import Rewards

Shape = Literal["constant", "clip", "tanh", "rank"]
Sign = Literal["paper", "opposite"]
SHAPES: tuple[Shape, ...] = ("constant", "clip", "tanh", "rank")

Clip = Annotated[float, Field(ge=0, le=NUMBER)] | list[float]
"""Limits of the advantage in units of beta0: c for ± c, or [low, high]. Checked by `clip_of`."""


def clip_of(value: Any) -> Clip | None:
    """The clip range that a config states. Raises ValueError where it is none."""
    if value is None:
        return None
    ends = value if isinstance(value, list) else [value]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"{value!r}: a number c for ± c, or [low, high] is expected, times beta0")
    if not all(abs(end) <= NUMBER for end in ends):
        raise ValueError(f"{value}: limits between {-NUMBER:g} and {NUMBER:g} are expected")
    if isinstance(value, list) and len(value) != 2:
        raise ValueError(f"{value}: two limits are expected, [low, high], or one number")
    if isinstance(value, list) and not value[0] <= 0 <= value[1]:
        raise ValueError(
            f"{value} is reversed or leaves out 0, the advantage of a group of equal rewards; "
            "expected [low, high] with low <= 0 <= high"
        )
    if not isinstance(value, list) and value < 0:
        raise ValueError(f"{value}: c >= 0 is expected, for advantages within ± c times beta0")
    return [float(end) for end in value] if isinstance(value, list) else float(value)


def clip_limits(clip: Clip, beta0: float) -> tuple[float, float]:
    """(A_min, A_max) of a clip range in units of beta0."""
    low, high = clip if isinstance(clip, list) else (-clip, clip)
    return low * beta0, high * beta0


class ControllerConfig(Section):
    """A beta0 that follows the divergence from the base (`training.controller`)."""

    target: float | None = setting(
        None,
        "mean divergence from the base that beta0 is steered to; unset: beta0 stays",
        before=None,
        gt=0,
        le=NUMBER,
    )
    low: float | None = setting(None, "beta0 is not below this", before=None, gt=0, le=NUMBER)
    high: float | None = setting(None, "beta0 is not above this", before=None, gt=0, le=NUMBER)

    @model_validator(mode="after")
    def _bounds_go_with_a_target(self) -> ControllerConfig:
        stated = (self.target, self.low, self.high)
        if None in stated and any(stated):
            raise ValueError(
                f"target = {self.target}, low = {self.low}, high = {self.high}: a controller needs "
                "all three, the divergence to reach and the bounds of beta0"
            )
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(
                f"low = {self.low:g} above high = {self.high:g}: the bounds of beta0 are reversed"
            )
        return self

    @property
    def is_on(self) -> bool:
        return self.target is not None

    def spread(self, beta0: float) -> tuple[float, ...]:
        """Values of beta0 that stand for all that it may take: `beta0`, the bounds, and some
        between them, evenly in their logarithm."""
        if self.low is None or self.high is None:
            return (beta0,)
        steps, ratio = 16, self.high / self.low
        between = (self.low * ratio ** (step / steps) for step in range(1, steps))
        return (beta0, self.low, *between, self.high)


class RegulariserConfig(Section):
    """The choice of beta_i; by default the one that the algorithm's name states."""

    shape: Shape | None = setting(
        None, "how beta_i follows the sample; unset: as the algorithm's name says", before=None
    )
    sign: Sign | None = setting(
        None, "paper: good samples are held less; opposite: more (not with constant)", before=None
    )
    floor: float | None = setting(
        None, "beta_i is not below this, in units of beta0", before=None, ge=0, le=NUMBER
    )
    beta0: float | None = setting(
        None, "raft, dpo: the base value of beta_i", before=None, gt=0, le=NUMBER
    )
    advantage_clip: Clip | None = setting(
        None, "orw, raft, dpo: clip of A, c or [low, high] in units of beta0; unset: 1", before=None
    )
    baseline: Baseline | None = setting(
        None, "orw, raft, dpo: V(c) of A, group (also unset) or batch", before=None
    )
    scale: Scale | None = setting(
        None, "orw, raft, dpo: divisor of A; clip and tanh need it stated", before=None
    )

    controller: ControllerConfig = setting(
        ControllerConfig(), "a beta0 that follows the divergence from the base"
    )

    gate: GateConfig = setting(
        GateConfig(), "a coefficient for those samples alone whose reward other rewards doubt"
    )

    _clip = field_validator("advantage_clip", mode="plain")(clip_of)


def coefficients(
    shape: Shape, sign: Sign, bent: Tensor, clipped: Tensor, rank: Tensor, beta0: float
) -> Tensor:
    """beta_i by the table of the module docstring, of the shape of `clipped`.

    bent: the advantage that tanh bends. clipped: A_clip. rank: r, in -1 ... 1. Only the one that
    the shape needs is read.
    """
    if shape == "constant":
        return torch.full_like(clipped, beta0)
    if shape == "clip":
        return beta0 - clipped if sign == "paper" else beta0 + clipped
    bend = rank if shape == "rank" else bent.tanh()
    return beta0 * (1 - bend) if sign == "paper" else beta0 * (1 + bend)


class Regularised(Protocol):
    """What the rules of [regulariser] and the bounds of its ranges ask of an algorithm."""

    shapes: ClassVar[tuple[Shape, ...]]
    shape: ClassVar[Shape | None]
    beta0_key: ClassVar[str | None]
    has_advantages: ClassVar[bool]
    config: Any
    terms: type[Terms]
    regulariser: Regulariser | None
    base_coefficient: float

    def at(self, beta0: float) -> Self: ...

    def limits(self, beta0: float) -> tuple[float, float]: ...

    def curvature(self, advantage: float, beta: float) -> float | None: ...


@dataclass(frozen=True)
class Regulariser:
    """The regulariser of one algorithm and one kind of terms, with every default filled in.

    shape: None where an algorithm of one's own computes beta_i. bends_clipped: whether tanh takes
    A_clip. floor: in units of beta0. clip, baseline, scale: of A, where [algorithm] has none.
    """

    beta0: float
    shape: Shape | None
    sign: Sign
    bends_clipped: bool
    floor: float | None = None
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    clip: Clip = 1.0
    baseline: Baseline = "group"
    scale: Scale = "none"

    def shaped(
        self, shape: Shape, advantage_S: Tensor, clipped_S: Tensor, rewards: Rewards, total: Tensor
    ) -> Tensor:
        """beta_i by `shape`, float64 [S]. total: of `combined`, float64 [P, G]."""
        rank_S = clipped_S
        if shape == "rank":
            rank_S = group_ranks(total, rewards.mask_PG).flatten()
        bent_S = clipped_S if self.bends_clipped else advantage_S
        return coefficients(shape, self.sign, bent_S, clipped_S, rank_S, self.beta0)

    def open_gates(self, rewards: Rewards, total_PG: Tensor) -> Tensor | None:
        """Whether each sample's gate is open, bool [S]; None without a gate."""
        if self.gate.share is None:
            return None
        return is_open(rewards, total_PG, self.gate.share, self.gate.side)

    def held(self, beta_S: Tensor, rewards: Rewards, total_PG: Tensor) -> Tensor:
        """beta_i after the gate, then the floor; float64 [S]."""
        open_S = self.open_gates(rewards, total_PG)
        if open_S is not None:
            beta_S = torch.where(open_S, beta_S, 0.0)
        return beta_S if self.floor is None else beta_S.clamp(min=self.floor * self.beta0)

    def added(self, shape: Shape, rewards: Rewards, total_PG: Tensor) -> Tensor:
        """beta_i of an algorithm without advantages of its own, float64 [S]."""
        mask_PG, how = rewards.mask_PG, {"baseline": self.baseline, "scale": self.scale}
        advantage_S = advantages(total_PG, mask_PG, **how).flatten()  # type: ignore[arg-type]
        clipped_S = advantage_S.clamp(*clip_limits(self.clip, self.beta0))
        beta_S = self.shaped(shape, advantage_S, clipped_S, rewards, total_PG)
        return self.held(beta_S, rewards, total_PG)
