"""The contract of a domain: build models, sample, show samples to rewards, measure terms.

A domain knows the real library's classes and the maths of its likelihood; it knows nothing of
algorithms, ranks or how a model is sharded. Its rows travel between ranks as plain tensors, so all
of a domain's row tensors have the same trailing shape on every rank, also with no row at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adrpo_scale.models import ModelSpec
from adrpo_scale.settings import Section, setting
from adrpo_scale.types import DrawKey, Prompt, Rows, Terms

Reference = Callable[[], AbstractContextManager[nn.Module]]
"""`with reference() as model:` — the frozen reference, or the policy with its adapters off."""


class DomainConfig(Section):
    """What every domain has."""

    rollout_chunk: int = setting(
        16,
        "samples generated at once on one rank; part of what bf16 results depend on",
        effect="rounding",
        ge=1,
    )


@dataclass(frozen=True)
class ExportTarget:
    """What the trained weights are to the libraries that load an export.

    pipeline, model: class names in diffusers. component: the model's folder in the pipeline; stem:
    its weight files' name. unused: components that the policy does without. task: the hub's name of
    what it does. inputs: a small fixed batch of keyword arguments of the model's forward.
    call: keyword arguments of the pipeline that sample as evaluations do; `steps` are Euler steps.
    """

    pipeline: str
    model: str
    component: str
    stem: str
    unused: tuple[str, ...]
    task: str
    inputs: Mapping[str, Tensor]
    call: Mapping[str, Any]


class Domain(ABC):
    kind: Literal["flow", "tokens"]  # which surrogate algorithms use
    folder: Path  # of the base model
    makes_pictures: bool = False  # whether artifacts are pictures: grids and image diversities

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
        depends on: a run that goes on must find the same contents in them."""

    @abstractmethod
    def export_target(self) -> ExportTarget:
        """What other libraries call the trained model, and how its export is tried out."""

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
        *,
        evaluation: bool = False,
    ) -> Rows:
        """One sample per entry of `prompts_N` (N may be 0); the caller chunks.

        evaluation: with the sampling settings and the fixed noise of evaluation."""

    @abstractmethod
    def artifacts(self, rows: Rows) -> list[Any]:
        """What rewards and people look at, one per row: uint8 images [H, W, 3], or texts."""

    @abstractmethod
    def terms(
        self,
        policy: nn.Module,
        reference: Reference,
        rows: Rows,
        noise_ids_N: Tensor,
        key: DrawKey,
        needs: frozenset[str],
    ) -> Terms:
        """Terms of the rows under the policy, with gradient.

        noise_ids_N: int64, whose random draws each row uses (rows of a pair share them).
        needs: fields of `Terms` to fill beyond the score, e.g. {"divergence"}."""

    @abstractmethod
    def divergence_metrics(self, terms: Terms) -> dict[str, Tensor]:
        """Evaluation metrics by name, each [N], from terms with a divergence."""
