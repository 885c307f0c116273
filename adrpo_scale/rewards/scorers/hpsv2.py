"""HPSv2.1: a CLIP ViT-H/14 of open_clip tuned to people's choices between pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.core.settings import setting
from adrpo_scale.data.readings import Encoder
from adrpo_scale.engines.workload import Frozen, plain_spec
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weights import check_finite, find_model
from adrpo_scale.rewards.clip_of_open_clip import CONFIG, FOLDER, load_open_clip, token_reader
from adrpo_scale.rewards.scorers.base import PRECISIONS, CosineScorer, ScorerConfig
from adrpo_scale.rewards.scorers.original import weights_file
from adrpo_scale.rewards.scorers.preprocessing import whole

_FILE = "HPS_v2.1_compressed"
_ARCHITECTURE = "ViT-H-14"


class Hpsv2Config(ScorerConfig):
    kind: str = setting("hpsv2", "HPSv2.1, 100 · cosine, about 20 to 35")
    model: str = setting(
        "xswu/HPSv2",
        "folder or hub id with HPS_v2.1_compressed.pt; open_clip_config.json in it states another "
        "architecture than ViT-H-14",
        min_length=1,
    )

    def needs_from_hub(self) -> list[HubNeed]:
        return [HubNeed(self.model, "rewards.model", (f"{_FILE}.safetensors", CONFIG))]


class Hpsv2(CosineScorer):
    """How well people like the picture for its prompt (arXiv 2306.09341, version 2.1).

    Formula: 100 · cosine(picture, prompt), as tables have it; its authors' function gives the
    cosine.
    Preprocessing: the whole picture at 224, black around it (`preprocessing.whole`); prompts are
    cut at 77 tokens, by open_clip's own tokenizer.
    Weights: `xswu/HPSv2`, `HPS_v2.1_compressed.pt` (1.97 GB in half precision, a pickle,
    Apache-2.0).
    Public value: none for one picture.
    """

    Config: ClassVar[type[Hpsv2Config]] = Hpsv2Config
    scale = 100.0

    @classmethod
    def models(
        cls, config: Hpsv2Config, section: str, dtype: torch.dtype, tokens: int
    ) -> Sequence[Frozen]:
        return [_frozen(config)]

    def __init__(self, config: Hpsv2Config, device: torch.device) -> None:
        super().__init__(config, device)
        (need,) = config.needs_from_hub()
        folder = find_model(need)
        file = weights_file(folder, (_FILE,), need.what)
        name = f"{FOLDER}{folder}" if (folder / CONFIG).is_file() else _ARCHITECTURE
        model, _, self._tokenizer = load_open_clip(name, None, torch.device("cpu"), file)
        for key, tensor in model.state_dict().items():
            check_finite(key, tensor, file)
        self._model: Any = model.to(device, self.dtype)
        self._side = _side(self._model.visual.image_size)

    def encoder(self) -> Encoder | None:
        return token_reader(self._tokenizer)

    def pixels(self, image: Image.Image) -> Tensor:
        return whole(image, self._side)

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._model.encode_image(pixels)
        return found

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        found: Tensor = self._model.encode_text(self._tokenizer(list(texts)).to(self.device))
        return found


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, tuple | list) else size)


def _frozen(config: Hpsv2Config) -> Frozen:
    """The model of a config, for `plan`."""
    import open_clip

    try:
        (need,) = config.needs_from_hub()
        stated: Path | None = find_here(need) / CONFIG
    except ModelNotFoundError:
        stated = None  # the architecture is known without the weights
    is_own = stated is not None and stated.is_file()
    shape: Mapping[str, Any] = (
        read_json(stated)["model_cfg"]  # type: ignore[arg-type]
        if is_own
        else open_clip.get_model_config(_ARCHITECTURE)
    )
    side, dtype = _side(shape["vision_cfg"]["image_size"]), PRECISIONS[config.dtype]

    def embed(model: Any, rows: int) -> Any:
        return model.encode_image(torch.empty(rows, 3, side, side, dtype=dtype))

    build: Any = partial(_empty, shape)
    name = f"reward {config.label}"
    return Frozen(name, plain_spec(build), dtype, "replicated", "reward", config.batch, embed)


def _empty(shape: Mapping[str, Any]) -> nn.Module:
    import open_clip

    model: nn.Module = open_clip.CLIP(**shape)
    return model
