"""The CLIP score of pictures, with weights of transformers or of open_clip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from adrpo_scale.core.bounds import COUNT
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.readings import Encoder, Readings, read_prompts
from adrpo_scale.engines.planning import Rung, halves
from adrpo_scale.engines.workload import Frozen, plain_spec
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.shapes import config_folder
from adrpo_scale.hub.weight_files import TRANSFORMERS
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.base import Embedding, Reward, RewardConfig
from adrpo_scale.rewards.clip_of_open_clip import FOLDER, load_open_clip, token_reader
from adrpo_scale.rewards.scorers.base import PRECISIONS, Precision


class ClipRewardConfig(RewardConfig):
    kind: str = setting("clip", "CLIP score, 100 · cosine")
    model: str = setting(
        REQUIRED,
        "transformers: folder, hub id or demo:NAME; open_clip: architecture, hf-hub:ID or "
        "local-dir:FOLDER",
    )
    backend: Literal["transformers", "open_clip"] = setting("transformers", "who wrote the weights")
    pretrained: str | None = setting(None, "open_clip: weights tag or file for an architecture")
    batch: int = setting(32, "pictures at once", ge=1, le=COUNT)
    dtype: Precision = setting("float32", "its precision", before="float32")

    def needs_from_hub(self) -> list[HubNeed]:
        if self.backend == "transformers":
            return [HubNeed(self.model, "rewards.model", TRANSFORMERS_FILES)]
        if self.model.startswith(OPEN_CLIP_HUB):
            name = self.model.removeprefix(OPEN_CLIP_HUB)
            return [HubNeed(name, "rewards.model", OPEN_CLIP_FILES)]
        return []  # a folder, or weights that open_clip brings by their tag


TRANSFORMERS_FILES = ("*.json", "*.txt", "*.safetensors")
OPEN_CLIP_FILES = ("*.json", "*.txt", "*.model", "open_clip*.safetensors")
OPEN_CLIP_HUB = "hf-hub:"


class ClipEncoder(ABC):
    """A CLIP model: embeddings that are not normalised."""

    @abstractmethod
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """[N, D] float32."""

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32."""

    @abstractmethod
    def reader(self) -> Encoder | None:
        """The text encoder as a reader of prompts; None where its tokens are not known."""


class TransformersClip(ClipEncoder):
    def __init__(self, need: HubNeed, device: torch.device, dtype: torch.dtype) -> None:
        from transformers import CLIPModel, CLIPProcessor

        folder = find_model(need)
        self._device, self._dtype = device, dtype
        model = load_weights(CLIPModel, folder, TRANSFORMERS, dtype=dtype)
        self._model = model.to(device).requires_grad_(False).eval()
        self._processor = load_settings(CLIPProcessor, folder, "processor")

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        inputs = self._processor.image_processor(list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._dtype)
        return pooled(self._model.get_image_features(pixels)).float()

    def texts(self, texts: Sequence[str]) -> Tensor:
        inputs = self._processor.tokenizer(
            list(texts), padding=True, truncation=True, return_tensors="pt"
        ).to(self._device)
        return pooled(self._model.get_text_features(**inputs)).float()

    def reader(self) -> Encoder:
        tokenizer = self._processor.tokenizer
        limit = int(tokenizer.model_max_length)
        return Encoder("text_model", limit, lambda texts: tokenizer(texts)["input_ids"])


def pooled(features: Any) -> Tensor:
    """The embedding; transformers 5 wraps it in an output object, earlier versions do not."""
    return features if isinstance(features, Tensor) else features.pooler_output


class OpenClip(ClipEncoder):
    def __init__(
        self, name: str, pretrained: str | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        model, self._preprocess, self._tokenizer = load_open_clip(name, pretrained, device)
        self._model = model.to(dtype)
        self._device, self._dtype = device, dtype

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self._preprocess(image) for image in images])
        return self._model.encode_image(pixels.to(self._device, self._dtype)).float()

    def texts(self, texts: Sequence[str]) -> Tensor:
        return self._model.encode_text(self._tokenizer(list(texts)).to(self._device)).float()

    def reader(self) -> Encoder | None:
        return token_reader(self._tokenizer)


class ClipReward(Reward, Embedding):
    """100 · cosine of image and prompt embedding (arXiv 2104.08718 without its clamp at 0)."""

    Config: ClassVar[type[ClipRewardConfig]] = ClipRewardConfig
    judges = ("pictures",)

    @classmethod
    def models(
        cls, config: ClipRewardConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen] | None:
        if config.backend != "transformers":
            return None  # shapes are known of transformers' models alone
        used = PRECISIONS[config.dtype]
        return [clip_model(config.model, f"{section}.model", config.label, config.batch, used)]

    @classmethod
    def rungs(cls, config: ClipRewardConfig, section: str) -> list[Rung]:
        return halves(f"{section}.batch", config.batch, "reward")

    def __init__(self, config: ClipRewardConfig, device: torch.device) -> None:
        super().__init__(config)
        self.config = config
        needs = config.needs_from_hub()
        if config.backend == "transformers":
            self._encoder: ClipEncoder = TransformersClip(
                needs[0], device, PRECISIONS[config.dtype]
            )
        else:
            # open_clip's own download would ignore the locked revision.
            name = f"{FOLDER}{find_model(needs[0])}" if needs else config.model
            used = PRECISIONS[config.dtype]
            self._encoder = OpenClip(name, config.pretrained, device, used)
        self._text_cache: dict[str, Tensor] = {}

    def reads(self, prompts: Sequence[Prompt]) -> Readings | None:
        reader = self._encoder.reader()
        return None if reader is None else read_prompts(f"reward {self.label}", [reader], prompts)

    def forget(self) -> None:
        self._text_cache.clear()

    @torch.no_grad()
    def embed(self, artifacts: Sequence[np.ndarray]) -> Tensor:
        """Unnormalised image embeddings, float32 [N, D] on the CPU."""
        parts = [
            self._encoder.images([Image.fromarray(i) for i in artifacts[k : k + self.config.batch]])
            for k in range(0, len(artifacts), self.config.batch)
        ]
        return torch.cat(parts).cpu()

    @torch.no_grad()
    def __call__(self, artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> Tensor:
        texts = [prompt.text for prompt in prompts]
        new = sorted(set(texts) - set(self._text_cache))
        if new:
            self._text_cache |= dict(zip(new, self._encoder.texts(new).cpu(), strict=True))
        text_embeddings = torch.stack([self._text_cache[text] for text in texts])
        cosine = (normalize(self.embed(artifacts), dim=1) * normalize(text_embeddings, dim=1)).sum(
            1
        )
        return 100.0 * cosine


def clip_model(name: str, what: str, label: str, batch: int, dtype: torch.dtype) -> Frozen:
    """A CLIP model of transformers that a reward embeds pictures with, for `plan`. name: its folder
    or hub id; what: the setting that names it. label: of the reward."""
    from transformers import AutoConfig, CLIPModel

    settings = load_settings(AutoConfig, config_folder(name, what))
    side = settings.vision_config.image_size

    def embed(model: Any, rows: int) -> Any:
        return model.get_image_features(torch.empty(rows, 3, side, side, dtype=dtype))

    spec = plain_spec(partial(CLIPModel, settings))
    return Frozen(f"reward {label}", spec, dtype, "replicated", "reward", batch, embed)
