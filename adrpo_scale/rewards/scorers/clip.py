"""The CLIP models of transformers that scorers embed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.data.readings import Encoder
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weight_files import TRANSFORMERS
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.image import pooled

WEIGHTS = ("config.json", "*.safetensors")
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt")


class Clip:
    """A CLIP model without its preprocessing. side: of its pictures. width: of its embeddings."""

    def __init__(self, need: HubNeed, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import CLIPModel

        model = load_weights(CLIPModel, find_model(need), TRANSFORMERS, dtype=dtype)
        self._model = model.to(device).requires_grad_(False).eval()
        self._device = device
        self.side = int(model.config.vision_config.image_size)
        self.width = int(model.config.projection_dim)
        self.tokens = int(model.config.text_config.max_position_embeddings)
        self.scale = float(model.logit_scale.float().exp())

    def images(self, pixels: Tensor) -> Tensor:
        """[N, width], not normalised."""
        return pooled(self._model.get_image_features(pixels))

    def texts(self, tokenizer: Any, texts: Sequence[str]) -> Tensor:
        """[N, width], not normalised; tokens beyond the model's length are cut off."""
        inputs = tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.tokens, return_tensors="pt"
        ).to(self._device)
        return pooled(self._model.get_text_features(**inputs))

    def encoder(self, tokenizer: Any) -> Encoder:
        return Encoder("text_model", self.tokens, lambda texts: tokenizer(texts)["input_ids"])


def clip_tokenizer(need: HubNeed) -> Any:
    from transformers import CLIPTokenizer

    return load_settings(CLIPTokenizer, find_model(need), "tokenizer")
