"""The noise of an evaluation's pictures: a function of a sample's key alone.

Models of one latent shape begin a sample with the same noise, whatever else is in its batch, and
however many processes share the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adrpo_scale.core.seeding import Purpose, derive_seed, generator, normal
from adrpo_scale.core.types import DrawKey

NOISE, LATER = DrawKey(0, 0, 0), DrawKey(0, 0, 1)  # the sample's own key becomes its id


def draw_key(seed: int, prompt: int, sample: int) -> DrawKey:
    """The key of a sample. seed: of sampling; prompt: its id in its set; sample: the number of the
    sample among those of that prompt and seed."""
    return DrawKey(seed, prompt, 0, sample)


def ids_of(keys: Sequence[DrawKey]) -> list[int]:
    """An id for each key, int64: samples of different keys are then drawn under one."""
    return [derive_seed(key.seed, key.iteration, key.update, key.draw) for key in keys]


def first_noise(keys: Sequence[DrawKey], shape: Sequence[int]) -> Tensor:
    """The noise that samples begin with, float32 [N, *shape] on the CPU. A run draws the same."""
    return normal(NOISE, ids_of(keys), Purpose.EVALUATION, shape)


def later_noise(keys: Sequence[DrawKey]) -> list[torch.Generator]:
    """A CPU generator for each sample, for what is drawn after the first noise."""
    return [generator(LATER, each, Purpose.EVALUATION) for each in ids_of(keys)]
