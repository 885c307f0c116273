"""The contract of a reward, and calls of rewards in which a bad sample stops no run.

A reward is built once per rank. It is called with a batch of artifacts (`Domain.artifacts`) and
their prompts, and returns one number per sample. If it raises, it is called again for one sample at
a time. A sample whose reward raises or is not finite is masked on every rank, and the log names its
prompt; samples with the same fault share one line, which names the first prompts.
"""

from __future__ import annotations

import logging
import math
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
_NAMED = 6  # prompts of one fault that a warning names


class RewardConfig(Section):
    """Settings of every reward."""

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
        """The name in logs and metrics."""
        return self.name or self.kind.rpartition(":")[2]

    def needs_from_hub(self) -> list[HubNeed]:
        """The models that the reward loads and `prefetch` downloads."""
        return []


class Reward(ABC):
    """Base class of rewards; see the module docstring."""

    @classmethod
    def models(
        cls, config: Any, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen] | None:
        """The models of a reward with that config, for `plan`: shapes alone, nothing is loaded. ()
        states that it holds none; None that they are unknown, of which `plan` warns.

        section: the config's path, "rewards.0". dtype: of models that the engine shards. tokens:
        length of the longest row, 0 where rows have no tokens."""
        return None

    @classmethod
    def rungs(cls, config: Any, section: str) -> list[Rung]:
        """Settings of that config that can be lowered where a run does not fit into memory."""
        return []

    def __init__(self, config: RewardConfig) -> None:
        self.label, self.weight = config.label, config.weight
        self.sharded: nn.Module | None = None  # whole only inside `engine.sampling()`

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardError if a prompt of the run lacks a field that this reward needs. Called
        with all prompts before the policy is loaded: later only one rank would find the fault."""
        return None

    def model_spec(self) -> ModelSpec | None:
        """The model of the reward that the engine builds and shards; None where there is none, or
        every rank holds it whole."""
        return None

    def use(self, model: nn.Module) -> None:
        """Takes over the model that the engine built from `model_spec`."""
        self.sharded = model

    @abstractmethod
    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
        """One number per sample, float [N]; N ≥ 1. An exception masks single samples, but
        RewardError ends the run."""


class PlainReward(Reward):
    """A reward that states that it holds no model."""

    @classmethod
    def models(cls, config: Any, section: str, dtype: torch.dtype, tokens: int) -> Sequence[Frozen]:
        return ()


class Embedding(ABC):
    """A reward that also gives embeddings of its artifacts; an evaluation of pictures measures with
    those of the first such reward how much the samples of a prompt differ."""

    @abstractmethod
    def embed(self, artifacts: Sequence[Any]) -> Tensor:
        """Float [N, D] on the CPU, not normalised."""


def sharded_models(rewards: Sequence[Reward]) -> list[nn.Module]:
    """The models that `engine.sampling()` must gather before these rewards are called."""
    return [reward.sharded for reward in rewards if reward.sharded is not None]


def rewards_of(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
    """float64 [N] on the CPU, NaN where the reward raised or was not finite. The log has one line
    for each fault of the batch: a reward with a bug fails on every sample in the same way."""
    if not artifacts:
        return torch.empty(0, dtype=torch.float64)
    values, faults = _scored(reward, artifacts, prompts)
    for fault in dict.fromkeys(filter(None, faults)):
        hit = [prompt for prompt, its in zip(prompts, faults, strict=True) if its == fault]
        log.warning("reward %s %s on %s; masked", reward.label, fault, _all_named(hit))
    return values


def _scored(
    reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]
) -> tuple[Tensor, list[str]]:
    """float64 [N], NaN where the reward failed, and the fault of each sample; "" where none."""
    try:
        values = checked(reward, artifacts, prompts)
    except RewardError:
        raise  # the reward breaks the contract on every sample
    except Exception as error:
        # Third-party code on generated input: one bad sample must not end a run of days.
        if len(artifacts) == 1:
            return torch.full((1,), torch.nan, dtype=torch.float64), [f"raised {error!r}"]
        pairs = zip(artifacts, prompts, strict=True)
        alone = [_scored(reward, [artifact], [prompt]) for artifact, prompt in pairs]
        return torch.cat([value for value, _ in alone]), [fault for _, (fault,) in alone]
    faults = ["" if math.isfinite(value) else f"is {value}" for value in values.tolist()]
    return torch.where(values.isfinite(), values, torch.nan), faults


def _all_named(prompts: Sequence[Prompt]) -> str:
    """The prompts of some samples for a message, the first few of them in full."""
    each = list({prompt.id: prompt for prompt in prompts}.values())
    names = ", ".join(named(prompt) for prompt in each[:_NAMED])
    more = f" and {len(each) - _NAMED} more" if len(each) > _NAMED else ""
    samples = f"{len(prompts)} samples: " if len(prompts) > 1 else ""
    return f"{samples}{names}{more}"


def checked(reward: Reward, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Tensor:
    """The reward's result as float64 [N] on the CPU. Raises RewardError for any other shape."""
    values = torch.as_tensor(reward(artifacts, prompts)).detach().cpu().double()
    if values.shape != (len(artifacts),):
        raise RewardError(
            f"reward {reward.label} gave shape {tuple(values.shape)} for {len(artifacts)} samples; "
            "one number per sample is expected"
        )
    return values


def named(prompt: Prompt) -> str:
    """The name of a prompt in errors and logs: its id and the beginning of its text."""
    return f"prompt {prompt.id} {prompt.text[:80]!r}"
