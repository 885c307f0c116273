"""The contract of an algorithm: one file, a config class and two or three short methods.

    credit(rewards)          the credit of each of the S samples, the same on every rank
    select(rewards, credit)  the samples to train on, in order; pairs adjacent
    loss(terms, credit)      the sum over rows, from the quantities that `Terms` computes

An algorithm does not depend on models, engines or ranks, nor on the kind of its terms: everything
that differs between kinds (a squared error or a ratio of probabilities) is a method of the terms.
The shortest algorithm is RAFT (`raft.py`). To write your own,

1. derive a config class from `AlgorithmConfig` and give it your settings;
2. derive the algorithm from `Algorithm` (from `GroupRelative` if it only needs another beta), name
   the config class in `Config`, and write `credit` and `loss`;
3. narrow `takes` if the loss is meaningful for one kind of terms alone, and set `asks_surrogate` to
   False if it does not use the surrogate.

The trainer divides the loss by the global count (`row_counts` summed over all ranks), so loss and
gradients depend neither on the number of processes nor on the micro-batch size: a loss must be a
sum over rows, without a mean of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from adrpo_scale.algorithms.advantages import Combine, combined
from adrpo_scale.algorithms.convexity import check_range
from adrpo_scale.algorithms.regulariser import RegulariserConfig, Shape, clip_limits
from adrpo_scale.algorithms.regulariser_rules import NOTHING, chosen
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms, Terms
from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Credit, Rewards

Source = Literal["policy", "reference", "base", "file"]
"""The model that generates samples; file: none, pairs are given."""


class AlgorithmConfig(Section):
    """Settings of every algorithm."""

    name: str = setting(REQUIRED, "which algorithm; your own by import path")
    combine: Combine = setting(
        "sum", "combination of rewards: weighted sum, or each normalised by its group first"
    )
    rollouts: Source = setting(
        "policy",
        "the model that generates the samples: the policy, the reference (where it moves), or the "
        "base; file: none, the rows of prompts.train have pairs of answers, chosen and rejected",
        before="policy",
    )
    pool: int = setting(
        0,
        "iterations of rollouts that are made once and reused; 0: new ones in every iteration",
        before=0,
        ge=0,
        le=COUNT,
    )

    @model_validator(mode="after")
    def _a_pool_is_not_of_the_policy(self) -> AlgorithmConfig:
        if self.rollouts == "policy" and self.pool:
            raise ValueError(
                f'pool = {self.pool} with rollouts = "policy": the policy changes, so samples of a '
                'pool would soon be of another model; set rollouts = "base", or pool = 0'
            )
        if self.rollouts == "file" and self.pool:
            raise ValueError(
                f'pool = {self.pool} with rollouts = "file": the file is the pool, which every '
                "epoch goes through again; set pool = 0"
            )
        return self


@dataclass(frozen=True)
class Stated:
    """Settings that a config must state because their defaults are meant for other terms.

    names: of the settings. instead: the values to state, with their source.
    """

    names: tuple[str, ...]
    instead: str


class Algorithm(ABC):
    """Base class of algorithms; see the module docstring.

    config: an instance of `Config`. gives: the kinds of terms that the domain measures, best first;
    the first that the algorithm takes becomes `terms`. wanted: `terms`, or the type derived from it
    that the settings need (`Terms.asked_with`). regulariser: the section of that name; an algorithm
    of one's own may leave the argument out of its constructor, and then takes none.
    base_coefficient: of a second penalty, to the base. Raises ConfigError where it takes none of
    the terms, where the domain does not give the wanted type, where the config does not state a
    setting that `must_state` names, and where [regulariser] does not go with it.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    takes: ClassVar[tuple[type[Terms], ...]] = (RegressionTerms, LikelihoodTerms)
    must_state: ClassVar[Mapping[type[Terms], Stated]] = {}
    asks_surrogate: ClassVar[bool] = True  # False spares a pass: see `needs_old`
    small_advantage: ClassVar[float] = 0.0  # a run warns of a mean |A| below it
    # What becomes of groups of equal rewards; in a warning.
    when_equal: ClassVar[str] = "they tell the algorithm nothing"

    shapes: ClassVar[tuple[Shape, ...]] = ()  # of the regulariser, which it takes
    shape: ClassVar[Shape | None] = None  # the one of its name
    beta0_key: ClassVar[str | None] = None  # the setting of [algorithm] that is beta0
    has_advantages: ClassVar[bool] = False  # whether [algorithm] has A and its clip

    takes_pairs: ClassVar[bool] = False  # whether the order of two given answers is enough for it
    # Of an algorithm whose reference moves, which is refused with the base: the settings of
    # [reference] that were released, and the algorithm that is its plain form.
    released_reference: ClassVar[str] = ""
    plain: ClassVar[str] = ""
    rows_per_unit: int = 1  # rows that must stay together: 2 where pairs are trained on
    rollouts: Source = "policy"  # the model that generates the samples, if the config names none
    rollout_pool: int = 0  # iterations of rollouts made once and reused; 0: new ones every time

    def __init__(
        self,
        config: AlgorithmConfig,
        *gives: type[Terms],
        regulariser: RegulariserConfig = NOTHING,
        base_coefficient: float = 0.0,
    ) -> None:
        self.config = config
        if config.rollouts != "policy":
            self.rollouts, self.rollout_pool = config.rollouts, config.pool
        self.terms = self._chosen(gives)
        self.wanted = self._wanted(gives)
        self._check_stated()
        self.base_coefficient = base_coefficient
        self.regulariser = chosen(self, regulariser)
        if self.regulariser is not None:
            check_range(self, self.regulariser)

    def _chosen(self, gives: tuple[type[Terms], ...]) -> type[Terms]:
        for kind in gives:
            if kind in self.takes:
                return kind
        raise ConfigError(
            f"{type(self).__name__} takes {_names(self.takes)}, but the domain gives "
            f"{_names(gives)}: choose another algorithm, or another domain"
        )

    def _wanted(self, gives: tuple[type[Terms], ...]) -> type[Terms]:
        wanted = self.terms.asked_with(self.config)
        if wanted is not self.terms and wanted not in gives:
            raise ConfigError(
                'algorithm.kl_estimator = "exact": the domain measures log-probabilities of drawn '
                f"tokens alone (it gives {_names(gives)}); use k3 (the default) or k2, or let the "
                f"domain give {wanted.__name__}"
            )
        return wanted

    def _check_stated(self) -> None:
        stated = self.must_state.get(self.terms)
        given = self.config.model_fields_set
        silent = [name for name in stated.names if name not in given] if stated else []
        if stated and silent:
            defaults = ", ".join(f"{name} = {_toml(getattr(self.config, name))}" for name in silent)
            raise ConfigError(
                f"algorithm: {' and '.join(silent)} must be stated where {self.terms.name} are "
                f"trained on (tokens), because the default ({defaults}) is meant for flow "
                f"matching; state {stated.instead}. A run that began with the default resumes "
                "with the default stated"
            )

    def at(self, beta0: float) -> Self:
        """The same algorithm with another beta0, also as the unit of `advantage_clip`."""
        other = copy.copy(self)
        if self.beta0_key is not None:
            other.config = self.config.model_copy(update={self.beta0_key: beta0})
        if self.regulariser is not None:
            other.regulariser = dataclasses.replace(self.regulariser, beta0=beta0)
        return other

    def limits(self, beta0: float) -> tuple[float, float]:
        """(A_min, A_max) of the advantage that chooses beta_i, at this beta0."""
        return (0.0, 0.0) if self.regulariser is None else clip_limits(self.regulariser.clip, beta0)

    def curvature(self, advantage: float, beta: float) -> float | None:
        """The smallest curvature, in the prediction, of the squared-error loss of a row with this
        A_clip; None: it has no such condition. beta: the sum of its divergences' coefficients."""
        return None

    @property
    def needs_old(self) -> bool:
        """Whether rows that are used for several updates must be measured before the first: a
        surrogate that is a ratio to the old policy would otherwise be constant 1."""
        return self.asks_surrogate and self.terms.compares_with_old

    @abstractmethod
    def credit(self, rewards: Rewards) -> Credit:
        """Credit of all S samples, the same on every rank."""

    def added_betas(self, rewards: Rewards, total_PG: Tensor) -> Tensor | None:
        """beta_i by [regulariser], float64 [S], of an algorithm without advantages of its own; None
        without one. total_PG: of `combined`."""
        held = self.regulariser
        if held is None or held.shape is None:
            return None
        return held.added(held.shape, rewards, total_PG)

    def open_gates(self, rewards: Rewards) -> Tensor | None:
        """Whether the regulariser's gate is open for each sample, bool [S]; None without a gate."""
        if self.regulariser is None:
            return None
        return self.regulariser.open_gates(rewards, combined(rewards, self.config.combine))

    def select(self, rewards: Rewards, credit: Credit) -> Tensor:
        """Ids of the samples to train on, int64 [M]; by default every included one, in order."""
        return credit.include.nonzero().flatten()

    def needs_reference(self, credit: Credit) -> bool:
        """Whether the loss of these samples needs the reference's pass; by default unless every
        beta is 0."""
        return bool(credit.beta.any())

    @abstractmethod
    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        """Scalar sum over the included rows (not divided by the global count).

        terms: of type `self.wanted`. credit: of the same N rows, on the CPU."""

    def row_counts(self, credit: Credit, segments_N: Tensor) -> Tensor:
        """Contribution of each row to the global count, float64 [N]. segments_N: int64, number of
        segments of each row."""
        return credit.include / self.rows_per_unit


def plain_credit(advantage_S: Tensor, beta: Tensor | float, rewards: Rewards) -> Credit:
    """Credit without clipping and without pairs. advantage_S: float64 [S]; beta: scalar or [S]."""
    return Credit(
        advantage=advantage_S,
        advantage_clipped=advantage_S,
        beta=torch.as_tensor(beta, dtype=torch.float64).expand_as(advantage_S),
        pair_id=torch.full_like(advantage_S, -1, dtype=torch.int64),
        include=rewards.included_PG.flatten().double(),
    )


def included_sum(values_N: Tensor, credit: Credit) -> Tensor:
    """Sum of the included rows' values, in the dtype of the values."""
    return (credit.include.to(values_N) * values_N).sum()


def _names(kinds: tuple[type[Terms], ...]) -> str:
    return " or ".join(f"{kind.name} ({kind.__name__})" for kind in kinds) or "nothing"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
