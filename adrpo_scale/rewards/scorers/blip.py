"""The scorers on BLIP-large: the image-text cosine, and ImageReward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.settings import setting
from adrpo_scale.data.readings import Encoder
from adrpo_scale.engines.workload import Frozen, plain_spec
from adrpo_scale.hub.loaders import load_settings
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.shapes import config_folder
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.scorers.base import PRECISIONS, CosineScorer, PictureScorer, ScorerConfig
from adrpo_scale.rewards.scorers.blip_model import (
    TOKENIZER,
    TOKENS,
    BlipReader,
    blip_sizes,
    build_blip,
    is_of_transformers,
    load_blip,
    load_blip_folder,
)
from adrpo_scale.rewards.scorers.head import load_head
from adrpo_scale.rewards.scorers.original import weights_file
from adrpo_scale.rewards.scorers.preprocessing import cropped

PUBLISHED = "THUDM/ImageReward"
BERT = "google-bert/bert-base-uncased"
_ORIGINAL = ("model_large", "model_large_retrieval_coco")  # of BLIP's repository
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of ImageReward's authors


class _BlipConfig(ScorerConfig):
    model: str
    tokenizer: str = setting(BERT, "BERT's tokenizer: folder or hub id", min_length=1)

    def files(self) -> tuple[str, ...]:
        """Patterns of the model's files."""
        raise NotImplementedError

    def needs_from_hub(self) -> list[HubNeed]:
        return [
            HubNeed(self.model, "rewards.model", self.files()),
            HubNeed(self.tokenizer, "rewards.tokenizer", TOKENIZER),
        ]


class BlipScoreConfig(_BlipConfig):
    kind: str = setting("blip_score", "BLIP's image-text cosine, about .4 to .6")
    model: str = setting(
        "Salesforce/blip-itm-large-coco",
        "folder or hub id; transformers' layout, or model_large.pth of BLIP's authors",
        min_length=1,
    )

    def files(self) -> tuple[str, ...]:
        return ("config.json", "*.safetensors", *(f"{name}.safetensors" for name in _ORIGINAL))


class ImageRewardConfig(_BlipConfig):
    kind: str = setting("image_reward", "ImageReward, about -2 to 2")
    model: str = setting("THUDM/ImageReward", "folder or hub id with ImageReward.pt", min_length=1)

    def files(self) -> tuple[str, ...]:
        return ("ImageReward.safetensors", "model.safetensors", "*.json")


class BlipScore(CosineScorer):
    """The image-text-contrastive cosine of BLIP-large (arXiv 2201.12086).

    Formula: cosine of vision_proj(first state of the picture) and text_proj(first state of the
    prompt, read without the picture). It is not the matching probability, which saturates.
    Preprocessing: `preprocessing.cropped` at the side of the weights' positions (224 of
    `model_large.pth`, 384 of the weights on the hub); prompts are cut at 35 tokens.
    Weights: `Salesforce/blip-itm-large-coco` (1.78 GB, BSD-3, tuned on COCO at 384), or
    `model_large.pth` of BLIP's repository (224). Their numbers differ: name them in a table.
    Public value: none for one picture; table 1 of arXiv 2510.18053 has .501 for Stable Diffusion 3.
    """

    Config: ClassVar[type[BlipScoreConfig]] = BlipScoreConfig
    scale = 1.0

    @classmethod
    def models(
        cls, config: BlipScoreConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        return [_frozen(config, section, heads=True)]

    def __init__(self, config: BlipScoreConfig, device: torch.device) -> None:
        super().__init__(config, device)
        model, tokenizer = config.needs_from_hub()
        folder = find_model(model)
        self._reader = BlipReader(tokenizer, device)
        if is_of_transformers(folder):
            self._blip: Any = load_blip_folder(folder, self.dtype, device)
        else:
            file = weights_file(folder, _ORIGINAL, model.what)
            self._blip = load_blip(file, self.dtype, device, heads=True)

    def encoder(self) -> Encoder:
        return self._reader.encoder()

    def pixels(self, image: Image.Image) -> Tensor:
        return cropped(image, self._blip.config.vision_config.image_size)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._blip.vision_proj(_first(self._blip.vision_model(pixels)))
        return found

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        read = self._blip.text_encoder(**self._reader(list(texts)))
        found: Tensor = self._blip.text_proj(_first(read))
        return found


class ImageReward(PictureScorer):
    """How well people like the picture for its prompt (arXiv 2304.05977), standardised.

    Formula: (linear layers 768-1024-128-64-16-1, without activations, of BLIP-large's first state
    of the prompt that attends to the picture - 0.16717362830052426) / 1.0333394966054072. The first
    token is [CLS], not BLIP's [ENC].
    Preprocessing: `preprocessing.cropped` at 224; prompts are padded and cut to 35 tokens.
    Weights: `THUDM/ImageReward`, `ImageReward.pt` (1.79 GB, a pickle, Apache-2.0).
    Public value: "a painting of an ocean with clouds and birds, day time, low depth field effect"
    with the four pictures of its repository: .5812, .2745, -1.4132, -2.0296.
    """

    Config: ClassVar[type[ImageRewardConfig]] = ImageRewardConfig

    @classmethod
    def models(
        cls, config: ImageRewardConfig, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        return [_frozen(config, section, heads=False)]

    def __init__(self, config: ImageRewardConfig, device: torch.device) -> None:
        super().__init__(config, device)
        model, tokenizer = config.needs_from_hub()
        file = weights_file(find_model(model), ("ImageReward", "model"), model.what)
        self._reader = BlipReader(tokenizer, device)
        blip: Any = load_blip(file, self.dtype, device, heads=False)
        self._blip = blip
        self._head = load_head(file, blip.config.text_config.hidden_size, device)

    def encoder(self) -> Encoder:
        return self._reader.encoder()

    def pixels(self, image: Image.Image) -> Tensor:
        return cropped(image, self._blip.config.vision_config.image_size)

    def scores(self, pixels: Tensor, texts: Sequence[str]) -> Tensor:
        read = _read_with(self._blip, pixels, self._reader(list(texts)))
        found: Tensor = self._head(_first(read).float())
        return (found - _MEAN) / _STD


def _first(read: Any) -> Tensor:
    """The first token's state."""
    states: Tensor = read.last_hidden_state
    return states[:, 0]


def _read_with(blip: Any, pixels: Tensor, prompts: dict[str, Tensor]) -> Any:
    """The prompts' states, which attend to the pictures."""
    seen = blip.vision_model(pixels).last_hidden_state
    return blip.text_encoder(**prompts, encoder_hidden_states=seen)


def _frozen(config: _BlipConfig, section: str, *, heads: bool) -> Frozen:
    """The BLIP of a config, for `plan`."""
    settings = _shape(config, section, heads=heads)
    side = settings.vision_config.image_size

    def judge(model: nn.Module, rows: int) -> Any:
        prompts = {
            name: torch.ones(rows, TOKENS, dtype=torch.int64)
            for name in ("input_ids", "attention_mask")
        }
        pixels = torch.empty(rows, 3, side, side, dtype=PRECISIONS[config.dtype])
        return _read_with(model, pixels, prompts)

    spec = plain_spec(partial(build_blip, settings, heads=heads))
    name, dtype = f"reward {config.label}", PRECISIONS[config.dtype]
    return Frozen(name, spec, dtype, "replicated", "reward", config.batch, judge)


def _shape(config: _BlipConfig, section: str, *, heads: bool) -> Any:
    """The `BlipConfig` of a config: of its folder, by its tensors in its authors' layout, or as
    published. A pickle is not opened for it: BLIP-large at 224 is assumed."""
    from transformers import BlipConfig

    what = f"{section}.model"
    try:
        return load_settings(BlipConfig, config_folder(config.model, what))
    except ModelNotFoundError:
        folder = find_here(HubNeed(config.model, what, config.files()))
    files = [folder / name for name in config.needs_from_hub()[0].named]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        return load_settings(BlipConfig, config_folder(PUBLISHED, what))
    return BlipConfig(**blip_sizes(file, heads=heads))
