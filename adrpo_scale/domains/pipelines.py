"""The folder of a Stable Diffusion 3 pipeline: which components it has, and those that are loaded
by their own libraries, checked on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_weights
from adrpo_scale.hub.weight_files import DIFFUSERS, TRANSFORMERS, weight_files

PIPELINE = "model_index.json"  # marks a folder as a diffusers pipeline
T5 = "text_encoder_3"
_KEYS = {  # what is read of each component's config, and has no default here
    "transformer": (
        "in_channels",
        "joint_attention_dim",
        "patch_size",
        "pooled_projection_dim",
        "pos_embed_max_size",
        "sample_size",
    ),
    "vae": ("block_out_channels",),
    "scheduler": (),
}


def read_configs(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    """The configs of transformer, VAE and scheduler. name: of the model, for errors. Raises
    ModelNotFoundError where one is missing, or is not that of a Stable Diffusion 3."""
    return {part: _read_config(folder, name, part) for part in _KEYS}


def _read_config(folder: Path, name: str, part: str) -> dict[str, Any]:
    file = f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"
    if not (folder / file).exists():
        raise ModelNotFoundError(
            f"domain.model = {name!r}: {file} is missing; a diffusers Stable Diffusion 3 pipeline "
            "folder or hub id is expected"
        )
    config = read_json(folder / file)
    lacks = [key for key in _KEYS[part] if key not in config]
    if lacks:
        raise ModelNotFoundError(
            f"domain.model = {name!r}: {folder / file} does not state {', '.join(lacks)}, as that "
            "of a Stable Diffusion 3 does; name a pipeline of it, or bring the file again"
        )
    return config


def encoders(t5: bool) -> list[str]:
    """Folders of the text encoders in use."""
    return ["text_encoder", "text_encoder_2", *([T5] * t5)]


def absent_components(folder: Path) -> list[str]:
    """Components that a pipeline was saved without: null in its model_index.json."""
    entries = read_json(folder / PIPELINE) if (folder / PIPELINE).is_file() else {}
    return [n for n, value in entries.items() if isinstance(value, list) and not all(value)]


def check_components(folder: Path, t5: bool) -> None:
    """Raises ConfigError where the settings want the third encoder of a pipeline without it."""
    if t5 and T5 in absent_components(folder):
        raise ConfigError(
            f"domain.t5 = true, but {folder} was saved without {T5} ({PIPELINE} has null for it): "
            "set domain.t5 = false"
        )


def check_weights(folder: Path, t5: bool) -> None:
    """Raises ModelNotFoundError where a component has no weights that are read here: its library
    would try a pickle, and only once the others are loaded."""
    weight_files(folder / "vae", DIFFUSERS)
    for part in encoders(t5):
        weight_files(folder / part, TRANSFORMERS)


def load_vae(folder: Path, dtype: torch.dtype) -> Any:
    """The frozen VAE, on the CPU. Raises DamagedFileError and WeightsError."""
    from diffusers import AutoencoderKL

    vae = load_weights(AutoencoderKL, folder, DIFFUSERS, dtype=dtype)
    return vae.requires_grad_(False).eval()


def load_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """A text encoder as the pipeline loads it, on the CPU. Raises DamagedFileError, and
    WeightsError where the pipeline would only warn that it begins weights at random."""
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    model_class: Any = T5EncoderModel if folder.name == T5 else CLIPTextModelWithProjection
    return load_weights(model_class, folder, TRANSFORMERS, dtype=dtype)
