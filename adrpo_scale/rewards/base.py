"""The contract of a reward, and how rewards are asked so that a bad sample stops no run.

A reward is built once per rank and called with a batch of what the domain made (`Domain.artifacts`)
and the prompts it was made for; it returns one number per sample. If it raises, it is
asked for one sample at a time. A sample whose reward raises or is not finite is masked on every
rank, and the log names its prompt.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.engines.planning import Rung
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.engines.workload import Frozen
from adrpo_scale.hub.needs import HubNeed

log = logging.getLogger(__name__)


class RewardConfig(Section):
    """What every reward has."""

    kind: str = setting(REQUIRED, "which reward; your own by import path")
    name: str | None = setting(
        None, "its name in the logs; by default its kind, or the class's name of your own"
    )
    weight: float = setting(1.0, "its weight in the sum")
    use: Literal["training", "evaluation"] = setting(
        "training", "evaluation: measured there and never trained on"
    )

    @property
    def label(self) -> str:
        return self.name or self.kind.rpartition(":")[2]

    def needs_from_hub(self) -> list[HubNeed]:
        """The models that the reward reads: what it loads, and what `prefetch` brings here."""
        return []


class Reward(ABC):
    """See the module docstring."""

    @classmethod
    def models(
        cls, config: Any, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen] | None:
        """The models that a reward of that config holds, for `plan`: shapes alone, nothing is
        loaded. () states that it holds none; None that nothing is known of it, which `plan` then
        says by the reward's name. section: the config's place, "rewards.0". dtype: in which models
        that the engine shards compute. tokens: of the longest row, 0 where rows have none."""
        return None

    @classmethod
    def rungs(cls, config: Any, section: str) -> list[Rung]:
        """Settings of that config that can be smaller where a run does not fit."""
        return []

    def __init__(self, config: RewardConfig) -> None:
        self.label, self.weight = config.label, config.weight
        self.sharded: nn.Module | None = None  # whole only inside `engine.sampling()`

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardError if one of the run's prompts lacks what this reward needs. Called with
        all of them before the policy is loaded: found later, only one rank would find it."""
        return None

    def model_spec(self) -> ModelSpec | None:
        """A model of its own that the engine is to build and shard; None: there is none, or every
        rank holds it whole."""
        return None

    def use(self, model: nn.Module) -> None:
        """Takes over what the engine built of `model_spec`."""
        self.sharded = model

    @abstractmethod
    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
        """Float tensor [N]; N ≥ 1."""


class PlainReward(Reward):
    """A reward that states that it holds no model."""

    @classmethod
    def models(cls, config: Any, section: str, dtype: torch.dtype, tokens: int) -> Sequence[Frozen]:
        return ()


class Embedding(ABC):
    """Of a reward that also gives embeddings of what it is shown; an evaluation of pictures takes
    those of the first such reward to say how much the samples of a prompt differ."""

    @abstractmethod
    def embed(self, artifacts: Sequence[Any]) -> Tensor:
        """Float [N, D] on the CPU, not normalised."""


def sharded_models(rewards: Sequence[Reward]) -> list[nn.Module]:
    """What `engine.sampling()` must gather before these rewards are asked."""
    return [reward.sharded for reward in rewards if reward.sharded is not None]


def rewards_of(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
    """float64 [N] on the CPU, NaN where the reward raised or was not finite."""
    if not artifacts:
        return torch.empty(0, dtype=torch.float64)
    try:
        values = checked(reward, artifacts, prompts)
    except RewardError:
        raise  # not a bad sample but a reward that breaks the contract on every sample
    except Exception as error:
        # Third-party code on generated input: one bad sample must not end a run of days.
        if len(artifacts) == 1:
            log.warning(
                "reward %s raised on %s: %r; masked", reward.label, named(prompts[0]), error
            )
            return torch.full((1,), torch.nan, dtype=torch.float64)
        pairs = zip(artifacts, prompts, strict=True)
        return torch.cat([rewards_of(reward, [artifact], [prompt]) for artifact, prompt in pairs])
    for index in (~values.isfinite()).nonzero().flatten().tolist():
        log.warning(
            "reward %s is %s on %s; masked",
            reward.label,
            float(values[index]),
            named(prompts[index]),
        )
    return torch.where(values.isfinite(), values, torch.nan)


def checked(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
    """The reward's answer as float64 [N]; RewardError if it is anything else."""
    values = torch.as_tensor(reward(artifacts, prompts)).detach().cpu().double()
    if values.shape != (len(artifacts),):
        raise RewardError(
            f"reward {reward.label} gave shape {tuple(values.shape)} for {len(artifacts)} samples; "
            "one number per sample is expected"
        )
    return values


def named(prompt: Prompt) -> str:
    return f"prompt {prompt.id} {prompt.text[:80]!r}"
