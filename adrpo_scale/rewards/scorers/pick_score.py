"""PickScore v1: a CLIP ViT-H/14 tuned to people's choices between pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from adrpo_scale.core.settings import setting
from adrpo_scale.data.readings import Encoder
from adrpo_scale.engines.workload import Frozen
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.rewards.image import clip_model
from adrpo_scale.rewards.scorers.base import PRECISIONS, CosineScorer, ScorerConfig
from adrpo_scale.rewards.scorers.clip import TOKENIZER, WEIGHTS, Clip, clip_tokenizer
from adrpo_scale.rewards.scorers.preprocessing import cropped


class PickScoreConfig(ScorerConfig):
    kind: str = setting("pick_score", "PickScore, about 16 to 26")
    model: str = setting("yuvalkirstain/PickScore_v1", "CLIP's folder or hub id", min_length=1)
    tokenizer: str = setting(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "its tokenizer's folder or hub id", min_length=1
    )

    def needs_from_hub(self) -> list[HubNeed]:
        return [
            HubNeed(self.model, "rewards.model", WEIGHTS),
            HubNeed(self.tokenizer, "rewards.tokenizer", TOKENIZER),
        ]


class PickScore(CosineScorer):
    """How likely people are to choose the picture for its prompt (arXiv 2305.01569).

    Formula: exp(logit_scale) · cosine(picture, prompt). Some divide it by 26 to train on it; set
    `weight` for that.
    Preprocessing: CLIP's own (`preprocessing.cropped` at 224); prompts are cut at 77 tokens.
    Weights: `yuvalkirstain/PickScore_v1` (3.94 GB, safetensors, licence as its page states), the
    tokenizer of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`.
    Public value: none for one picture; table 1 of arXiv 2510.18053 has 20.81 for Stable Diffusion
    3, and others publish 1 to 1.5 more.
    """

    Config: ClassVar[type[PickScoreConfig]] = PickScoreConfig

    @classmethod
    def models(
        cls, config: PickScoreConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        used = PRECISIONS[config.dtype]
        return [clip_model(config.model, f"{section}.model", config.label, config.batch, used)]

    def __init__(self, config: PickScoreConfig, device: torch.device) -> None:
        super().__init__(config, device)
        model, tokenizer = config.needs_from_hub()
        self._tokenizer = clip_tokenizer(tokenizer)
        self._clip = Clip(model, self.dtype, device)
        self.scale = self._clip.scale

    def encoder(self) -> Encoder:
        return self._clip.encoder(self._tokenizer)

    def pixels(self, image: Image.Image) -> Tensor:
        return cropped(image, self._clip.side)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        return self._clip.images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        return self._clip.texts(self._tokenizer, texts)
