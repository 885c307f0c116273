"""What is named as a model of an evaluation of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adrpo_scale.checkpoint.named import EVALUATED


@dataclass(frozen=True)
class RunModel:
    """A run as a model. run: RUN, RUN@120, RUN@last, RUN@best. weights: a word of `named.WEIGHTS`.
    steps, guidance, size (pixels, square): in place of those of the run's evaluations."""

    run: str
    weights: str = EVALUATED
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None


@dataclass(frozen=True)
class PipelineModel:
    """A diffusers pipeline as a model. pipeline: a folder (also an export) or hub id. revision: of
    the hub. lora: a folder or hub id of adapters. The others are the pipeline's own where they are
    None; size: pixels, square; dtype: float32, bfloat16 or float16. without: components that are
    not loaded, for pipelines that can do without them (SD3's T5)."""

    pipeline: str
    revision: str | None = None
    lora: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    dtype: str | None = None
    max_sequence_length: int | None = None
    without: Sequence[str] = ()


Model = RunModel | PipelineModel
