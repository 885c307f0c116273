"""The contract of a domain: build models, sample, show samples to rewards, measure terms.

A domain knows the real library's classes and the maths of its likelihood; it knows nothing of
losses, ranks or how a model is sharded. Its rows travel between ranks as plain tensors, so all
of a domain's row tensors have the same trailing shape on every rank, also with no row at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import DrawKey, Prompt, Rows
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.engines.planning import Rung
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.engines.workload import Workload
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import WeightSource

Reference = Callable[[], AbstractContextManager[nn.Module]]
"""`with reference() as model:` — the frozen reference, or the policy with its adapters off."""

Mode = Literal["rollout", "evaluation", "greedy"]
"""What is sampled for: training, or evaluation with its own settings and fixed noise; `greedy` is
one deterministic sample, in domains that have such a thing."""


class DomainConfig(Section):
    """What every domain has."""

    name: str = setting(REQUIRED, "which domain; your own by import path")
    rollout_chunk: int = setting(
        16,
        "samples generated at once on one rank; part of what bf16 results depend on. Tokens: a "
        "prompt's pass is shared by its samples in one chunk, so a multiple of group_size is best",
        effect="rounding",
        ge=1,
    )

    def needs_from_hub(self) -> list[HubNeed]:
        """The models that the domain reads: what it loads, and what `prefetch` brings here."""
        return []


@dataclass(frozen=True)
class Published:
    """A model's folder or hub id, as far as it is known without bringing anything here. has:
    whether a file of this name lies in it. model_type: config.json's, None where it has none, or
    where nobody can be asked."""

    has: Callable[[str], bool]
    model_type: Callable[[], str | None]


class Domain(ABC):
    """What of a domain is asked before there is a model, or without one, is asked of the class."""

    Config: ClassVar[Any]  # the domain's config class
    hears: ClassVar[bool] = False  # whether its prompts may be about clips
    adapted: ClassVar[tuple[str, ...]] = ()  # layers that adapters are put on by default
    gives: ClassVar[tuple[type[Terms], ...]]  # kinds of terms, the one that it is known for first
    folder: Path  # of the base model
    medium: ClassVar[Literal["pictures", "completions"]]  # how artifacts are shown and measured
    evaluations: tuple[Mode, ...] = ("evaluation",)  # the modes that an evaluation goes through

    @classmethod
    def recognises(cls, model: Published) -> bool:
        """Whether a model that somebody names without a config is one of this domain's. Where
        several say so, the one that stands last in the registry has it."""
        return False

    @classmethod
    def published(cls, model: str) -> dict[str, Any]:
        """The section [domain] with which a model is sampled from as it was published."""
        return {"model": model, "train": "full"}

    @classmethod
    def weights_in(cls, folder: Path) -> WeightSource | None:
        """What the policy is read from in a model's folder; None: not known before it is built."""
        return None

    @classmethod
    def workload(cls, config: Any, dtype: torch.dtype) -> Workload:
        """What a run of that config computes, for `plan`: shapes alone, nothing is loaded. dtype:
        the engine's. Raises ModelNotFoundError where the model's shape is not known here."""
        raise ConfigError(
            f"plan does not know what the domain {config.name!r} computes: give its class "
            f"{cls.__name__} the class method `workload`; training does not need it"
        )

    @classmethod
    def rungs(cls, config: Any) -> list[Rung]:
        """Settings of that config that can be smaller where a run does not fit."""
        return []

    @abstractmethod
    def policy_spec(self) -> ModelSpec:
        """What the engine builds to train."""

    @abstractmethod
    def reference_spec(self) -> ModelSpec | None:
        """What the engine builds as a second, frozen model; None where adapters are switched off
        instead."""

    @abstractmethod
    def frozen_files(self) -> list[Path]:
        """Files of the base model, beside the weights that are trained, that what is learned
        depends on: a run that resumes must find the same contents in them."""

    @abstractmethod
    def export_target(self) -> ExportTarget:
        """What other libraries call the trained model, and how its export is tried out."""

    def check_training(self) -> None:
        """Raises ConfigError where what training (and nothing else) needs is not installed."""
        return None

    def usable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that can be worked on, in their order. Collective."""
        return list(prompts)

    def as_before(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """All of them, which could be worked on when their run began. Collective."""
        return list(prompts)

    @abstractmethod
    def prepare(self, prompts: Sequence[Prompt], device: torch.device, dtype: torch.dtype) -> None:
        """Whatever must exist before sampling; called once with every prompt of the run.
        Collective."""

    @abstractmethod
    def sample(
        self,
        policy: nn.Module,
        prompts_N: Sequence[Prompt],
        sample_ids_N: Tensor,
        key: DrawKey,
        mode: Mode = "rollout",
    ) -> Rows:
        """One sample per entry of `prompts_N` (N may be 0); the caller chunks."""

    def begin_rollout(self, policy: nn.Module) -> None:
        """Called inside `engine.sampling()` before the first `sample` of a rollout."""
        return None

    @abstractmethod
    def artifacts(self, rows: Rows) -> list[Any]:
        """What rewards and people look at, one per row, as the medium has it: uint8 images
        [H, W, 3], or `Completion`s."""

    def is_sound(self, rows: Rows) -> Tensor:
        """bool [N] on the CPU: False for a row that nothing can be concluded from, in training and
        evaluation, because the policy was not given all of its prompt."""
        return torch.ones(len(rows), dtype=torch.bool)

    def keeps(self, rows: Rows) -> Tensor:
        """bool [N] on the CPU: False for a row that is left out of the loss."""
        return self.is_sound(rows)

    def receive(self, rows: Rows) -> Rows:
        """Rows that this rank received, before it trains on them; `is_sound` then also says
        which of them it cannot train on."""
        return rows

    def sizes(self, rows: Rows) -> Tensor | None:
        """What a pass over each row costs, int64 [N] on the CPU (its tokens); None where all rows
        cost the same."""
        return None

    def row_metrics(self, rows: Rows) -> dict[str, Tensor]:
        """Numbers of each row beside its rewards, float64 [N] on the CPU, by the names under which
        their means are logged; the same names on every rank."""
        return {}

    def remember(self, policy: nn.Module, rows: Rows) -> Rows:
        """The rows with what must be measured of them before the policy's first step (`logp_old`).
        Called inside `engine.sampling()`, for algorithms with `needs_old`, where a rollout is used
        for more than one step."""
        return rows

    def segments(self, rows: Rows) -> Tensor:
        """Of how many segments the likelihood of each row is made, int64 [N]: its tokens; 1 where a
        domain gives no `LikelihoodTerms`."""
        return torch.ones(len(rows), dtype=torch.int64)

    @abstractmethod
    def terms(
        self,
        policy: nn.Module,
        reference: Reference | None,
        rows: Rows,
        noise_ids_N: Tensor,
        key: DrawKey,
        wanted: type[Terms],
    ) -> Terms:
        """Terms of the rows under the policy, with gradient.

        reference: None where its pass is to be left out; what is of it is then None in the terms.
        noise_ids_N: int64, whose random draws each row uses (rows of a pair share them).
        wanted: one of `gives`, and the type of what is returned."""

    @abstractmethod
    def divergence_metrics(self, terms: Terms) -> dict[str, Tensor]:
        """Evaluation metrics by name, each [N]; terms: of type `gives[0]`, with a divergence."""
