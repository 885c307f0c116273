"""Models that paint the pictures of an evaluation: a run's checkpoint, or a diffusers pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from adrpo_scale.core.types import DrawKey
from adrpo_scale.evaluation.images.models import Model, RunModel
from adrpo_scale.evaluation.images.pipeline_painter import PipelinePainter
from adrpo_scale.evaluation.images.run_painter import RunPainter


class Painter(Protocol):
    """A model that paints. `prepare` and `close` are collective; `paint` is not.

    identity: everything that its pictures depend on, except prompt and key, as JSON; known before
    anything heavy is loaded.
    """

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def prepare(self, prompts: Sequence[str]) -> None:
        """Loads the model. prompts: every text that will be painted; called once, before `paint`.
        Collective."""

    def paint(self, prompts: Sequence[str], keys: Sequence[DrawKey]) -> list[np.ndarray]:
        """A picture, uint8 [H, W, 3], of each prompt. keys: of `noise.draw_key`. Ranks may call it
        differently often."""

    def close(self) -> None:
        """Frees the memory of the model; afterwards nothing can be painted. Collective."""


def painter_of(model: Model, device: torch.device) -> Painter:
    """The painter of a model; reads configs and headers, no weights. Collective.

    Raises ConfigError, CheckpointError, ModelNotFoundError, DamagedFileError and WeightsError for
    everything that can be told without weights.
    """
    if isinstance(model, RunModel):
        return RunPainter(model, device)
    return PipelinePainter(model, device)
