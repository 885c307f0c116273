"""The contract of an algorithm: one file, a config class and two or three short methods.

    credit(rewards)          what each of the S samples is worth, computed alike on every rank
    select(rewards, credit)  which samples are trained on, in which order; pairs adjacent
    loss(terms, credit)      the sum over rows, by the questions that `Terms` answers

An algorithm knows nothing of models, engines or ranks, and not which terms it is given: whatever
depends on that (a squared error or a ratio of probabilities) is asked of the terms. The shortest
one is RAFT (`raft.py`); to write your own,

1. derive a config class from `AlgorithmConfig` and give it your settings;
2. derive the algorithm from `Algorithm` (from `GroupRelative` if it is advantages in a group and
   another beta), name the config class in `Config`, and write `credit` and `loss`;
3. narrow `takes` if the loss has a meaning for one kind of terms alone, and set `asks_surrogate` to
   False if it does not ask for the surrogate.

The trainer divides the loss by the global count (`row_counts` summed over all ranks), so loss and
gradients depend neither on the number of processes nor on the micro-batch size: a loss must be a
sum over rows, without a mean of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adrpo_scale.algorithms.advantages import Combine
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms, Terms
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Credit, Rewards


class AlgorithmConfig(Section):
    """What every algorithm has."""

    name: str = setting(REQUIRED, "which algorithm; your own by import path")
    combine: Combine = setting(
        "sum", "how several rewards become one: weighted sum, or each normalised by its group first"
    )


@dataclass(frozen=True)
class Stated:
    """Settings that a config must state because their defaults are meant for other terms.

    names: of the settings. instead: the values to state, and whose they are.
    """

    names: tuple[str, ...]
    instead: str


class Algorithm(ABC):
    """See the module docstring.

    config: an instance of `Config`. gives: the terms that the domain measures, best first; the
    first that the algorithm takes is `terms`. Raises ConfigError where there is none, and where
    the config is silent on a setting that `must_state` names.
    """

    Config: ClassVar[type[AlgorithmConfig]]
    takes: ClassVar[tuple[type[Terms], ...]] = (RegressionTerms, LikelihoodTerms)
    must_state: ClassVar[Mapping[type[Terms], Stated]] = {}
    asks_surrogate: ClassVar[bool] = True  # False spares a pass: see `needs_old`
    small_advantage: ClassVar[float] = 0.0  # a run is warned where the mean |A| is below

    rows_per_unit: int = 1  # rows that must stay together: 2 where pairs are trained on
    rollouts: Literal["policy", "reference"] = "policy"  # who generates the samples
    rollout_pool: int = 0  # iterations of rollouts made once and used again; 0 = always afresh

    def __init__(self, config: AlgorithmConfig, *gives: type[Terms]) -> None:
        self.config = config
        self.terms = self._chosen(gives)
        self._check_stated()

    def _chosen(self, gives: tuple[type[Terms], ...]) -> type[Terms]:
        for kind in gives:
            if kind in self.takes:
                return kind
        raise ConfigError(
            f"{type(self).__name__} takes {_names(self.takes)}, but the domain gives "
            f"{_names(gives)}: choose another algorithm, or another domain"
        )

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

    @property
    def needs_old(self) -> bool:
        """Whether rows that are used for several steps must be measured before the first of them:
        a surrogate that is a ratio to the old policy would be constant 1 without that."""
        return self.asks_surrogate and self.terms.compares_with_old

    @abstractmethod
    def credit(self, rewards: Rewards) -> Credit:
        """Credit of all S samples, the same on every rank."""

    def select(self, rewards: Rewards, credit: Credit) -> Tensor:
        """Ids of the samples to train on, int64 [M]: here every unmasked one, in order."""
        return credit.include.nonzero().flatten()

    def needs_reference(self, credit: Credit) -> bool:
        """Whether the loss of these samples needs the reference measured: a pass that is left out
        where every beta is 0."""
        return bool(credit.beta.any())

    @abstractmethod
    def loss(self, terms: Terms, credit: Credit) -> Tensor:
        """Scalar: the sum over included rows (not yet divided by the global count).

        terms: of type `self.terms`. credit: of the same N rows, on the CPU."""

    def row_counts(self, credit: Credit, segments_N: Tensor) -> Tensor:
        """What each row adds to the global count, float64 [N]; segments_N: of each row, int64."""
        return credit.include / self.rows_per_unit


def plain_credit(advantage_S: Tensor, beta: Tensor | float, rewards: Rewards) -> Credit:
    """Credit where nothing is clipped and nothing is paired."""
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
