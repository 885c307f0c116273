"""The contract of a reward: it is built once per rank and called with artifacts and their prompts.

`calls` calls it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.core.bounds import NUMBER, WAIT
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.rewards.signature import check_signature

if TYPE_CHECKING:  # a reward's own process begins three seconds earlier without them
    from adrpo_scale.data.readings import Readings
    from adrpo_scale.engines.planning import Rung
    from adrpo_scale.engines.spec import ModelSpec
    from adrpo_scale.engines.workload import Frozen


class RewardConfig(Section):
    """Settings of every reward."""

    kind: str = setting(REQUIRED, "which reward; your own by import path")
    name: str | None = setting(
        None, "its name in the logs; by default its kind, or the class's name of your own"
    )
    weight: float = setting(1.0, "its weight in the sum", ge=-NUMBER, le=NUMBER)
    use: Literal["training", "evaluation", "gate"] = setting(
        "training",
        "evaluation: measured there and never trained on; gate: also scored in rollouts, outside "
        "the sum, for regulariser.gate",
    )
    time_limit: float | None = setting(
        None,
        "seconds for a call on a chunk of samples; the reward then runs in a process of its own, "
        "which is ended at the limit",
        before=None,
        effect="none",
        gt=0,
        le=WAIT,
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

    is_light: ClassVar[bool] = False  # True: building it loads no model
    is_apart: ClassVar[bool] = False  # True: it runs in a process of its own
    asks_server: ClassVar[bool] = False  # True: it is tried before a run, as other people's code is
    judges: ClassVar[tuple[str, ...]] = ()  # media of domains, see `Domain.medium`; (): any
    check_keeps_nothing: ClassVar[bool] = False  # True: `check` leaves nothing that calls need
    needs_modules: ClassVar[tuple[str, ...]] = ()  # slow to import, and without threads

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

    @classmethod
    def check_code(cls, config: Any) -> None:
        """Raises RewardError where the code that a config names cannot be used. Nothing is loaded:
        `adrpo-scale config` asks this, too."""
        check_signature(cls.__call__, config.label, skip=1)

    def __init__(self, config: RewardConfig) -> None:
        """Every subclass is built as `Subclass(config, device)`."""
        self.label, self.weight, self.time_limit = config.label, config.weight, config.time_limit
        self.sharded: nn.Module | None = None  # whole only inside `engine.sampling()`
        self.patience = 0.0  # seconds beyond the watchdog's, of one without a time limit
        self.resumes = False  # True before `check` where the run resumes from a checkpoint
        self.call_seconds = 0.0  # longest call, of a reward that ends its calls itself
        self.record: Path | None = None  # this process's file, of one that asks a server
        self.is_deserted = False  # True: a server gave no answer at all to the last call

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises RewardError if a prompt of the run lacks a field that this reward needs. Called
        with all prompts before the policy is loaded: later only one rank would find the fault."""
        return None

    def reads(self, prompts: Sequence[Prompt]) -> Readings | None:
        """How much of the prompts the reward's encoder reads; None where it cuts none or does not
        say. For rank 0 only."""
        return None

    def model_spec(self) -> ModelSpec | None:
        """The model of the reward that the engine builds and shards; None where there is none, or
        every rank holds it whole."""
        return None

    def use(self, model: nn.Module) -> None:
        """Takes over the model that the engine built from `model_spec`."""
        self.sharded = model

    def forget(self) -> None:
        """Drops what earlier calls have left, for who needs numbers that depend on a call's samples
        alone, to the bit: a text's embedding differs by the texts that are encoded beside it."""
        return None

    @abstractmethod
    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        """One number per sample, N ≥ 1: a tensor or an array [N], or a list, in which None abstains
        (see `calls`). With further numbers for the log: a pair of these and a dictionary, whose
        values are one number or N. Coroutines of these are awaited. An exception masks single
        samples, but RewardError ends the run."""


class PlainReward(Reward):
    """A reward that states that it holds no model."""

    is_light = True

    @classmethod
    def models(cls, config: Any, section: str, dtype: torch.dtype, tokens: int) -> Sequence[Frozen]:
        return ()


REPEATS = 3
"""Time limits that the samples of a failed call get together, when they are scored one by one."""


def longest_wait(rewards: Sequence[Reward] | Sequence[RewardConfig]) -> float:
    """Seconds without progress that rewards may take for one chunk of samples, beyond those that
    the watchdog allows: of their time limits, of those that end their calls themselves, and of the
    most patient one without either."""
    limited = sum(map(_longest_call, rewards))
    return limited + max((getattr(reward, "patience", 0.0) for reward in rewards), default=0.0)


def _longest_call(reward: Reward | RewardConfig) -> float:
    if reward.time_limit is not None:
        return (1 + REPEATS) * reward.time_limit
    return float(getattr(reward, "call_seconds", 0.0))


class Embedding(ABC):
    """A reward that also gives embeddings of its artifacts; an evaluation of pictures measures with
    those of the first such reward how much the samples of a prompt differ."""

    @abstractmethod
    def embed(self, artifacts: Sequence[Any]) -> Tensor:
        """Float [N, D] on the CPU, not normalised."""


def sharded_models(rewards: Sequence[Reward]) -> list[nn.Module]:
    """The models that `engine.sampling()` must gather before these rewards are called."""
    return [reward.sharded for reward in rewards if reward.sharded is not None]
