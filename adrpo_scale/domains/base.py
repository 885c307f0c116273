"""The contract of a domain: describe models, sample, turn rows into artifacts, measure terms.

A domain knows the model library's classes and the maths of its likelihood. It knows nothing of
losses, ranks or sharding. Its rows travel between ranks as plain tensors, so each row tensor has
the same trailing shape on every rank, even without any row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

import torch
from pydantic import ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from adrpo_scale.algorithms.terms import Terms
from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import DrawKey, Prompt, Rows
from adrpo_scale.data.readings import Readings
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.engines.planning import Rung
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.engines.workload import Workload
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import WeightSource

T = TypeVar("T")

Reference = Callable[[], AbstractContextManager[nn.Module]]
"""`with reference() as model:` — a frozen model, or the policy with other adapters or none."""


def measured_under(other: Reference | None, measure: Callable[[nn.Module], T]) -> T | None:
    """What `measure` gives of that model, without gradient; None without a model."""
    if other is None:
        return None
    with torch.no_grad(), other() as model:
        return measure(model)


Mode = Literal["rollout", "evaluation", "greedy"]
"""The purpose of sampling: training, or evaluation with its own settings and fixed noise; `greedy`
is one deterministic sample per prompt, in domains that offer it."""


NO_PAIRS = (
    'algorithm.rollouts = "file": the domain {} cannot train on given pairs; give its class the '
    "methods `take_pairs` and `given` (`domains.base.Domain`), or sample from the policy"
)
AUTO: Final = "auto"
CHUNK = 16  # samples at once, where nobody has chosen a number in place of "auto"


class DomainConfig(Section):
    """The settings that every domain has."""

    name: str = setting(REQUIRED, "the domain: flow, text, audio, or an import path")
    rollout_chunk: int | Literal["auto"] = setting(
        AUTO,
        "samples generated at once on one rank; bf16 results depend on it. auto: as many as fit by "
        "the arithmetic of `plan`, in whole groups, chosen at a run's first start on GPUs and kept "
        "for good; 16 on CPUs. Tokens: the samples of a prompt in one chunk share its prefill, so "
        "a multiple of group_size is best",
        effect="rounding",
        before=CHUNK,
        ge=1,
        le=COUNT,
    )

    @field_validator("rollout_chunk", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, number: ValidatorFunctionWrapHandler) -> Any:
        """pydantic would compare "auto" with the bounds, and name both types for each fault."""
        if value == AUTO:
            return value
        if type(value) is not int:
            raise PydanticCustomError("int_type", 'Input should be a number, or "auto"')
        return number(value)

    @property
    def chunk(self) -> int:
        """`rollout_chunk` as a number: CHUNK where it is "auto" and nobody has chosen one."""
        return CHUNK if self.rollout_chunk == AUTO else self.rollout_chunk

    def needs_from_hub(self) -> list[HubNeed]:
        """The models that the domain loads; `prefetch` downloads them."""
        return []


@dataclass(frozen=True)
class Published:
    """A model's folder or hub id, described without a download.

    has: True for the name of a file in it. model_type: that of its config.json; None without one,
    or where the hub cannot be reached.
    """

    has: Callable[[str], bool]
    model_type: Callable[[], str | None]


class Domain(ABC):
    """See the module docstring. Questions that need no loaded model are class methods."""

    Config: ClassVar[Any]  # the domain's config class
    hears: ClassVar[bool] = False  # True where prompts may name audio clips
    adapted: ClassVar[tuple[str, ...]] = ()  # layers that get adapters by default
    gives: ClassVar[tuple[type[Terms], ...]]  # the types of terms; evaluations take the first
    folder: Path  # of the base model
    medium: ClassVar[Literal["pictures", "completions"]]  # a key of `training.media.MEDIA`
    evaluations: tuple[Mode, ...] = ("evaluation",)  # the modes of an evaluation's samples
    shares_prompts: bool = False  # True where rows of one prompt side by side cost a pass less

    @classmethod
    def recognises(cls, model: Published) -> bool:
        """True for a model of this domain, named without a config. Where several domains recognise
        it, the last one in the registry takes it."""
        return False

    @classmethod
    def published(cls, model: str) -> dict[str, Any]:
        """The section [domain] for sampling from a published model."""
        return {"model": model, "train": "full"}

    @classmethod
    def weights_in(cls, folder: Path) -> WeightSource | None:
        """The policy's weights in a model's folder; None: not known before the domain is built."""
        return None

    @classmethod
    def workload(cls, config: Any, dtype: torch.dtype) -> Workload:
        """The workload of a run of that config, for `plan`; no weights are loaded. dtype: the
        engine's. Raises ModelNotFoundError where the model's config is not on this machine."""
        raise ConfigError(
            f"plan does not know what the domain {config.name!r} computes: give its class "
            f"{cls.__name__} the class method `workload`; training does not need it"
        )

    @classmethod
    def bytes_to_cache(
        cls, config: Any, prompts: Sequence[Prompt], dtype: torch.dtype
    ) -> int | None:
        """Bytes that `prepare` will add to the cache for these prompts; 0: all are there; None: it
        caches nothing. dtype: the engine's. Raises ModelNotFoundError where the model's config is
        not on this machine."""
        return None

    @classmethod
    def rungs(cls, config: Any) -> list[Rung]:
        """Settings of that config that lower memory where a run does not fit."""
        return []

    @abstractmethod
    def policy_spec(self) -> ModelSpec:
        """The model to train."""

    @abstractmethod
    def reference_spec(self) -> ModelSpec | None:
        """The reference as a second, frozen model; None where it is the policy with its adapters
        switched off."""

    @abstractmethod
    def frozen_files(self) -> list[Path]:
        """Files of the base model that influence training, except the trained weights. A run
        resumes only with the same contents."""

    @abstractmethod
    def export_target(self) -> ExportTarget:
        """The trained model's names in other libraries, and inputs to verify its export."""

    def rules(self) -> dict[str, Any]:
        """Facts of sampling, as JSON, that a run's first checkpoint records and later starts
        keep."""
        return {}

    def keep_rules(self, rules: Mapping[str, Any]) -> None:
        """Takes over the rules of a run's checkpoint, in place of those of new runs. rules: {} of a
        checkpoint that records none. Called before `policy_spec`."""
        return None

    def check_training(self) -> None:
        """Raises ConfigError where a package that only training needs is not installed."""
        return None

    def usable(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts that this domain can sample from, in their order. Collective."""
        return list(prompts)

    def reads(self, prompts: Sequence[Prompt]) -> Readings | None:
        """How much of the prompts the model's encoders read; None where nothing is ever cut. Loads
        no model."""
        return None

    def as_before(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """The prompts of a run that resumes: all of them, because they were usable when the run
        began. Collective."""
        return list(prompts)

    def take_pairs(self, prompts: Sequence[Prompt], folder: Path) -> list[Prompt]:
        """The prompts whose given pairs can be trained on, for `algorithm.rollouts = "file"`; they
        are kept for `given`. folder: names of files are relative to it. Reads no model's weights.
        Collective. Raises PromptError that names the rows that are no pairs."""
        raise ConfigError(NO_PAIRS.format(type(self).__name__))

    def pair_files(self) -> list[Path]:
        """The files that given pairs name. A run resumes only with the same contents."""
        return []

    def check_policy(self, policy: nn.Module) -> None:
        """Called inside `engine.sampling()` once, before the first given pairs are trained on."""
        return None

    def given(self, prompts_N: Sequence[Prompt], sample_ids_N: Tensor) -> Rows:
        """The chosen answer of each prompt for samples of even ids, the rejected one for odd ids,
        as rows like those of `sample` (N may be 0). Called after `take_pairs` and `prepare`."""
        raise ConfigError(NO_PAIRS.format(type(self).__name__))

    @abstractmethod
    def prepare(self, prompts: Sequence[Prompt], device: torch.device, dtype: torch.dtype) -> None:
        """Loads or computes everything that sampling needs; called once, with all prompts of the
        run. Collective."""

    @abstractmethod
    def sample(
        self,
        policy: nn.Module,
        prompts_N: Sequence[Prompt],
        sample_ids_N: Tensor,
        key: DrawKey,
        mode: Mode = "rollout",
    ) -> Rows:
        """One sample per entry of `prompts_N` (N may be 0).

        sample_ids_N: int64 on the CPU. key: seeds the draws, together with each sample's id.
        """

    def begin_rollout(self, policy: nn.Module) -> None:
        """Called inside `engine.sampling()` before the first `sample` of a rollout."""
        return None

    def end_rollout(self) -> None:
        """Called inside `engine.sampling()` after the last `sample` of a rollout."""
        return None

    @abstractmethod
    def artifacts(self, rows: Rows) -> list[Any]:
        """One artifact per row, of the medium's type: uint8 images [H, W, 3], or `Completion`s."""

    def is_sound(self, rows: Rows) -> Tensor:
        """bool [N] on the CPU: False for a row whose policy did not get the whole prompt. Such a
        row counts neither in training nor in evaluation."""
        return torch.ones(len(rows), dtype=torch.bool)

    def keeps(self, rows: Rows) -> Tensor:
        """bool [N] on the CPU: False for a row that is left out of the loss."""
        return self.is_sound(rows)

    def receive(self, rows: Rows) -> Rows:
        """The rows that this rank received, ready for training. Afterwards `is_sound` is also False
        for those that this rank cannot train on."""
        return rows

    def sizes(self, rows: Rows) -> Tensor | None:
        """The cost of a pass over each row, int64 [N] on the CPU (its tokens); None where all rows
        cost the same."""
        return None

    def row_metrics(self, rows: Rows) -> dict[str, Tensor]:
        """Further numbers of each row, float64 [N] on the CPU. Their means are logged under these
        names, which are the same on every rank."""
        return {}

    def remember(self, policy: nn.Module, rows: Rows) -> Rows:
        """The rows with added tensors of the policy before its first step (`logp_old`).

        Called inside `engine.sampling()`, for algorithms with `needs_old`, where a rollout has more
        than one optimizer step.
        """
        return rows

    def remember_draws(
        self, policy: nn.Module, rows: Rows, noise_ids_N: Tensor, keys: Sequence[DrawKey]
    ) -> Rows:
        """Called in place of `remember` where the terms have `same_draws`: the rows with what they
        need of the policy before its first step at each of the iteration's draws. keys: of `terms`,
        the same in every update."""
        raise NotImplementedError(
            f"{type(self).__name__} lists terms with `same_draws` in `gives`: define "
            "`remember_draws` too, or leave them out"
        )

    def segments(self, rows: Rows) -> Tensor:
        """The number of factors of each row's likelihood, int64 [N]: its tokens; 1 in a domain that
        gives no `LikelihoodTerms`."""
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
        base: Reference | None = None,
    ) -> Terms:
        """Terms of the rows under the policy, with gradient.

        reference: None skips its pass; the terms that need it are then None. base: likewise; given
        where the reference moves and the divergence from the base is to be measured too. A domain
        without this argument trains with the base as its reference.
        noise_ids_N: int64 sample ids that seed each row's draws; rows of a pair share one.
        wanted: one of `gives`, and the type of the result.
        """

    @abstractmethod
    def divergence_metrics(self, terms: Terms) -> dict[str, Tensor]:
        """Evaluation metrics by name, each [N]; terms: of type `gives[0]`, with a divergence."""
