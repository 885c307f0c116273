"""The CLIP models of open_clip, whose weights are read from safetensors alone.

open_clip opens a pickle wherever a folder, a tag or a file names one, and hands a tokenizer
whatever keywords its config states. So the file of weights is chosen here, by open_clip's own
order; a pickle is converted once (`hub.pickles`), and no code of a model's own is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.data.readings import Encoder
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import unasked
from adrpo_scale.hub.pickles import as_safetensors

FOLDER = "local-dir:"
CONFIG = "open_clip_config.json"
_READ = (".safetensors", ".npz", ".npy")  # the last two are read as numbers alone
# open_clip's order among the files of a folder.
_FIRST = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)


def load_open_clip(
    name: str, pretrained: str | None, device: torch.device, file: Path | None = None
) -> tuple[Any, ...]:
    """(model, preprocessing of pictures, tokenizer). name, pretrained: see `ClipRewardConfig`.
    file: the weights, where they are known. Raises ModelNotFoundError where open_clip cannot load
    it, and WeightsError for a pickle that holds anything but tensors."""
    import open_clip

    try:
        weights = as_safetensors(file or _weights(name, pretrained), _READ)
        with unasked():
            model, _, preprocess = open_clip.create_model_and_transforms(
                name,
                pretrained=pretrained,
                device=device,
                load_weights=False,
                pretrained_image=False,
                pretrained_text=False,
            )
            open_clip.load_checkpoint(model, str(weights), strict=True)
            tokenizer = open_clip.get_tokenizer(name, **_keywords(name))
    except (
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise ModelNotFoundError(
            f"open_clip cannot load {name!r} (pretrained = {pretrained!r}): {error}; give "
            "local-dir:FOLDER, hf-hub:ID of a cached model, or an architecture + file"
        ) from error
    return model.requires_grad_(False).eval(), preprocess, tokenizer


def token_reader(tokenizer: Any) -> Encoder | None:
    """The text encoder behind a tokenizer of open_clip as a reader of prompts; None where its
    tokens are not known."""
    limit = getattr(tokenizer, "context_length", None)
    if limit is None or not hasattr(tokenizer, "encode"):
        return None
    around = ([getattr(tokenizer, "sot_token_id", 0)], [getattr(tokenizer, "eot_token_id", 0)])

    def tokenize(texts: list[str]) -> list[list[int]]:
        return [[*around[0], *tokenizer.encode(text), *around[1]] for text in texts]

    return Encoder("text", int(limit), tokenize)


def _weights(name: str, pretrained: str | None) -> Path:
    """The file of weights that open_clip would open. Raises ValueError where there is none."""
    import open_clip

    if name.startswith(FOLDER):
        return _in_folder(Path(name.removeprefix(FOLDER)))
    tag = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained) if pretrained else None
    if tag:
        return Path(open_clip.download_pretrained(tag))
    if pretrained and Path(pretrained).is_file():
        return Path(pretrained)
    raise ValueError("it names neither a known tag nor a file of weights")


def _in_folder(folder: Path) -> Path:
    found = sorted(p for end in ("safetensors", "bin", "pth") for p in folder.glob(f"*.{end}"))
    if not found:
        raise ValueError(f"{folder} holds no weights")
    named = {path.name: path for path in found}
    first = next((named[name] for name in _FIRST if name in named), None)
    return first or min(found, key=lambda path: (path.suffix != ".safetensors", path.name))


def _keywords(name: str) -> Mapping[str, Any]:
    """Keywords of the tokenizer; those of a folder's config could let its code run."""
    import open_clip

    if name.startswith(FOLDER):
        config = read_json(Path(name.removeprefix(FOLDER)) / CONFIG).get("model_cfg")
    else:
        config = open_clip.get_model_config(name)
    text = (config or {}).get("text_cfg") or {}
    return {"trust_remote_code": False} if text.get("hf_tokenizer_name") else {}
