"""BLIP as one class of transformers, with weights in its layout or in that of BLIP's authors.

Both scorers on BLIP use `BlipForImageTextRetrieval`. Two values of its config decide the numbers
and are set here whatever a folder states: vision layers normalise with eps = 1e-6 (the default,
1e-5, moves scores by .01), and text layers attend to pictures (`is_decoder`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import WeightsError
from adrpo_scale.data.readings import Encoder
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weight_files import TRANSFORMERS
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.scorers.original import filled, opened

TOKENS = 35  # that BLIP's evaluation reads of a prompt
TOKENIZER = ("tokenizer*.json", "special_tokens_map.json", "vocab.txt")
_HEAD = 64  # width of an attention head, of every published BLIP
_EPS = 1e-6

# BLIP's names in the order of their replacement → those of transformers.
_VISION = {
    "patch_embed.proj": "embeddings.patch_embedding",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
}
_HEADS = ("vision_proj.", "text_proj.", "itm_head.")
_BESIDE = re.compile(  # what training left in a file: averages, queues, a decoder, a temperature
    r"(\w+_m|text_decoder)\..*|(image|text|idx)_queue|queue_ptr|ptr_queue|temp"
)


def blip_name(stored: str, *, heads: bool) -> str | None:
    """The name in `BlipForImageTextRetrieval` of a tensor in BLIP's own layout; None for one that
    it does without. heads: whether projections and the matching head are read."""
    name = stored.removeprefix("blip.")
    if name.endswith(".position_ids") or name.startswith("mlp.") or _BESIDE.fullmatch(name):
        return None
    if name.startswith(_HEADS):
        return name if heads else None
    if not name.startswith("visual_encoder."):
        return name
    name = name.removeprefix("visual_encoder.")
    name = re.sub(
        r"^blocks\.(\d+)", r"encoder.layers.\1", re.sub(r"^norm\.", "post_layernorm.", name)
    )
    for theirs, ours in _VISION.items():
        name = re.sub(rf"(^|\.){re.escape(theirs)}(\.|$)", rf"\g<1>{ours}\g<2>", name)
    return f"vision_model.{name}"


def sizes_of(shapes: Mapping[str, tuple[int, ...]], where: Path) -> dict[str, Any]:
    """The config of a BLIP by the shapes of its tensors, which are named as in transformers: files
    in BLIP's own layout have none. Raises WeightsError where the tensors are not those of a BLIP.
    """
    try:
        words, places = (
            shapes[f"text_encoder.embeddings.{name}_embeddings.weight"]
            for name in ("word", "position")
        )
        patch = shapes["vision_model.embeddings.patch_embedding.weight"]
        positions = shapes["vision_model.embeddings.position_embedding"]
        text, vision = "text_encoder.encoder.layer", "vision_model.encoder.layers"
        inner = shapes[f"{text}.0.intermediate.dense.weight"], shapes[f"{vision}.0.mlp.fc1.weight"]
    except KeyError as error:
        raise WeightsError(f"{where}: {error} is missing: this is no BLIP") from error
    width, hidden = patch[0], words[1]
    if width % _HEAD or hidden % _HEAD:
        raise WeightsError(
            f"{where}: its widths are {width} and {hidden}, and multiples of {_HEAD} are expected "
            "of a BLIP"
        )
    return {
        "image_text_hidden_size": shapes.get("vision_proj.weight", (256,))[0],
        "text_config": {
            "vocab_size": words[0],
            "hidden_size": hidden,
            "max_position_embeddings": places[0],
            "intermediate_size": inner[0][0],
            "num_hidden_layers": _layers(shapes, text),
            "num_attention_heads": hidden // _HEAD,
            "bos_token_id": None,
            "sep_token_id": None,
        },
        "vision_config": {
            "hidden_size": width,
            "image_size": round((positions[1] - 1) ** 0.5) * patch[-1],
            "patch_size": patch[-1],
            "intermediate_size": inner[1][0],
            "num_hidden_layers": _layers(shapes, vision),
            "num_attention_heads": width // _HEAD,
        },
    }


def _layers(shapes: Mapping[str, tuple[int, ...]], stem: str) -> int:
    found = (re.match(rf"{re.escape(stem)}\.(\d+)\.", name) for name in shapes)
    return 1 + max(int(match[1]) for match in found if match)


def _right(config: Any) -> Any:
    """The `BlipConfig`, changed to the values of the module's docstring."""
    config.vision_config.layer_norm_eps = _EPS
    config.text_config.is_decoder = True
    return config


def build_blip(config: Any, *, heads: bool) -> nn.Module:
    """The model of a `BlipConfig`. heads: with projections and the matching head."""
    from transformers import BlipForImageTextRetrieval

    model: nn.Module = BlipForImageTextRetrieval(_right(config))
    if not heads:
        model.vision_proj = model.text_proj = model.itm_head = nn.Identity()
    return model


def load_blip(file: Path, dtype: torch.dtype, device: torch.device, *, heads: bool) -> nn.Module:
    """The BLIP of a file in its authors' layout, frozen. Raises as `filled`."""
    from transformers import BlipConfig

    sizes = blip_sizes(file, heads=heads)
    name = partial(blip_name, heads=heads)
    return filled(lambda: build_blip(BlipConfig(**sizes), heads=heads), file, name, dtype).to(
        device
    )


def blip_sizes(file: Path, *, heads: bool) -> dict[str, Any]:
    """`sizes_of` a safetensors file in BLIP's own layout, by its header."""
    weights = opened(file, partial(blip_name, heads=heads))
    found = sizes_of({name: weights.shape(name) for name in weights.names()}, file)
    weights.close()
    return found


def load_blip_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The BLIP of a folder in transformers' layout, frozen. Raises as `load_weights`."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    config = _right(load_settings(BlipConfig, folder))
    model = load_weights(
        BlipForImageTextRetrieval, folder, TRANSFORMERS, config=config, dtype=dtype
    )
    moved: nn.Module = model.to(device).requires_grad_(False).eval()
    return moved


def is_of_transformers(folder: Path) -> bool:
    """Whether a folder has a BLIP in transformers' layout."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == "blip"


class BlipReader:
    """The tokenizer of BLIP: BERT's, padded and cut to `TOKENS`; the first token stays [CLS]."""

    def __init__(self, need: HubNeed, device: torch.device) -> None:
        from transformers import BertTokenizer

        self._tokenizer = load_settings(BertTokenizer, find_model(need), "tokenizer")
        self._device = device

    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """`input_ids` and `attention_mask`, int64 [N, TOKENS]."""
        read: Callable[..., Any] = self._tokenizer
        found = read(
            texts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(self._device)
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def encoder(self) -> Encoder:
        return Encoder("text_encoder", TOKENS, lambda texts: self._tokenizer(texts)["input_ids"])
