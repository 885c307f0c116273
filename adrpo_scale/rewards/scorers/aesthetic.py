"""The aesthetic score of LAION's improved predictor (V2, linear, MSE)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from adrpo_scale.core.settings import setting
from adrpo_scale.engines.workload import Frozen
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.image import clip_model
from adrpo_scale.rewards.scorers.base import PRECISIONS, PictureScorer, ScorerConfig
from adrpo_scale.rewards.scorers.clip import WEIGHTS, Clip
from adrpo_scale.rewards.scorers.head import load_head
from adrpo_scale.rewards.scorers.original import weights_file
from adrpo_scale.rewards.scorers.preprocessing import cropped

_PUBLISHED = "sac+logos+ava1-l14-linearMSE"


class AestheticConfig(ScorerConfig):
    kind: str = setting("aesthetic", "LAION's aesthetic score, 1 to 10")
    model: str = setting(
        "ttj/sac-logos-ava1-l14-linearMSE", "the predictor: folder or hub id", min_length=1
    )
    clip: str = setting(
        "openai/clip-vit-large-patch14", "the CLIP that it predicts from", min_length=1
    )

    def needs_from_hub(self) -> list[HubNeed]:
        predictor = HubNeed(
            self.model, "rewards.model", (f"{_PUBLISHED}.safetensors", "model.safetensors")
        )
        return [predictor, HubNeed(self.clip, "rewards.clip", WEIGHTS)]


class Aesthetic(PictureScorer):
    """How beautiful a picture is, 1 to 10; its prompt is not read.

    Formula: linear layers 768-1024-128-64-16-1 without activations, of the normalised picture
    embedding (after the projection) of OpenAI's CLIP ViT-L/14.
    Preprocessing: CLIP's own (`preprocessing.cropped` at 224).
    Weights: `sac+logos+ava1-l14-linearMSE.pth` (3.7 MB, a pickle, Apache-2.0; repository
    christophschuhmann/improved-aesthetic-predictor), or the same as safetensors.
    Public value: Stable Diffusion 3.5 medium on DrawBench, 5.39.
    """

    Config: ClassVar[type[AestheticConfig]] = AestheticConfig

    @classmethod
    def models(
        cls, config: AestheticConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        used = PRECISIONS[config.dtype]
        return [clip_model(config.clip, f"{section}.clip", config.label, config.batch, used)]

    def __init__(self, config: AestheticConfig, device: torch.device) -> None:
        super().__init__(config, device)
        predictor, clip = config.needs_from_hub()
        file = weights_file(find_model(predictor), (_PUBLISHED, "model"), predictor.what)
        self._clip = Clip(clip, self.dtype, device)
        self._head = load_head(file, self._clip.width, device)

    def pixels(self, image: Image.Image) -> Tensor:
        return cropped(image, self._clip.side)

    def scores(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        found: Tensor = self._head(normalize(self._clip.images(pixels).float(), dim=1))
        return found
