"""What scorers of pictures share: batches, precision, and the cosine of pictures and prompts.

Weights are read from safetensors, and from a pickle only through `hub.pickles`. A scorer's own
preprocessing is part of its formula and no setting. Scores are float32, whatever the precision.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.readings import Encoder, Readings, read_prompts
from adrpo_scale.engines.planning import Rung, halves
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.rewards.base import Reward, RewardConfig

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS = {**DTYPES, "float16": torch.float16}


class ScorerConfig(RewardConfig):
    """Settings of every scorer of pictures."""

    dtype: Precision = setting("float32", "precision of the encoder")
    batch: int = setting(32, "pictures at once", effect="rounding", ge=1, le=COUNT)


class PictureScorer(Reward):
    """A scorer of pictures, in batches."""

    judges = ("pictures",)

    @classmethod
    def rungs(cls, config: Any, section: str) -> list[Rung]:
        return halves(f"{section}.batch", config.batch, "reward")

    def __init__(self, config: ScorerConfig, device: torch.device) -> None:
        super().__init__(config)
        self.device, self.dtype, self.batch = device, PRECISIONS[config.dtype], config.batch

    @abstractmethod
    def pixels(self, image: Image.Image) -> Tensor:
        """The preprocessed picture, float32 [3, H, W]."""

    @abstractmethod
    def scores(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        """[N] of a batch. pixels: [N, 3, H, W] in the scorer's precision, on its device."""

    def encoder(self) -> Encoder | None:
        """The text encoder as a reader of prompts; None for a scorer that reads none."""
        return None

    def reads(self, prompts: Sequence[Prompt]) -> Readings | None:
        reader = self.encoder()
        return None if reader is None else read_prompts(f"reward {self.label}", [reader], prompts)

    @torch.no_grad()
    def __call__(self, artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        found = []
        for start in range(0, len(artifacts), self.batch):
            part = slice(start, start + self.batch)
            pixels = torch.stack([self.pixels(Image.fromarray(each)) for each in artifacts[part]])
            texts = [prompt.text for prompt in prompts[part]]
            found.append(self.scores(pixels.to(self.device, self.dtype), texts).float().cpu())
        return torch.cat(found)


class CosineScorer(PictureScorer):
    """scale · cosine(picture, prompt). A prompt is embedded once."""

    scale: float

    def __init__(self, config: ScorerConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._known: dict[str, Tensor] = {}

    def forget(self) -> None:
        self._known.clear()

    @abstractmethod
    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """[N, D] of preprocessed pictures."""

    @abstractmethod
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D]."""

    def scores(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        new = sorted(set(texts) - self._known.keys())
        for start in range(0, len(new), self.batch):
            some = new[start : start + self.batch]
            self._known |= dict(zip(some, self.embed_texts(some).float(), strict=True))
        pictures = self.embed_pixels(pixels).float()
        prompts = torch.stack([self._known[text] for text in texts])
        return self.scale * (normalize(pictures, dim=1) * normalize(prompts, dim=1)).sum(1)
