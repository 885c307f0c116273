"""The workload of `FlowDomain`: Euler steps, the VAE, the text encoders."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.domains.embeddings import ENCODE_BATCH
from adrpo_scale.domains.sd3 import transformer_spec
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.engines.workload import (
    NO_WEIGHTS,
    Frozen,
    Step,
    Workload,
    lora_of,
    plain_spec,
    spec_of,
)
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings


def flow_workload(
    config: Any, folder: Path, latent: tuple[int, int, int], dtype: torch.dtype
) -> Workload:
    """config: of the domain `flow`. folder: of the model or its config files. latent: [C, H, W]."""
    transformer = read_json(folder / "transformer" / "config.json")
    lora = lora_of(config)
    clip = read_json(folder / "text_encoder" / "config.json")
    tokens = clip.get("max_position_embeddings", 77) + config.max_sequence_length

    def velocity(model: Any, rows: int) -> Tensor:
        return model(
            hidden_states=torch.empty(rows, *latent, dtype=dtype),
            timestep=torch.empty(rows),
            encoder_hidden_states=torch.empty(
                rows, tokens, transformer["joint_attention_dim"], dtype=dtype
            ),
            pooled_projections=torch.empty(rows, transformer["pooled_projection_dim"], dtype=dtype),
            return_dict=False,
        )[0].float()

    def euler(model: Any, rows: int) -> Tensor:
        solver = config.rollout
        return velocity(model, rows * (2 if solver.guidance != 1.0 else 1))

    build = spec_of(transformer_spec(transformer, NO_WEIGHTS, lora))
    return Workload(
        spec=build,
        reference=None if lora is not None else replace(build, lora=None),
        train=lambda model, rows: velocity(model, rows).square().mean(),
        rollout=(Step("Euler steps", euler, config.rollout.steps),),
        frozen=(_vae(config, folder, latent), *_encoders(config, folder, dtype)),
        evaluation=config.evaluation.steps / config.rollout.steps,
    )


def _vae(config: Any, folder: Any, latent: tuple[int, ...]) -> Frozen:
    from diffusers import AutoencoderKL

    settings = read_json(folder / "vae" / "config.json")
    dtype = DTYPES[config.vae_dtype]

    def decode(model: Any, rows: int) -> Tensor:
        return model.decode(torch.empty(rows, *latent, dtype=dtype), return_dict=False)[0].float()

    spec = plain_spec(partial(AutoencoderKL.from_config, settings))
    return Frozen("VAE", spec, dtype, "replicated", "rollout", config.decode_chunk, decode)


def _encoders(config: Any, folder: Any, dtype: torch.dtype) -> list[Frozen]:
    """The text encoders, together on every rank until every prompt has its embedding."""
    from transformers import AutoConfig, CLIPTextModelWithProjection, T5EncoderModel

    classes: dict[str, Any] = {"text_encoder": CLIPTextModelWithProjection}
    classes["text_encoder_2"] = CLIPTextModelWithProjection
    if config.t5:
        classes["text_encoder_3"] = T5EncoderModel
    found = []
    for part, model_class in classes.items():
        settings = load_settings(AutoConfig, folder / part)
        is_t5 = part == "text_encoder_3"
        length = config.max_sequence_length if is_t5 else settings.max_position_embeddings

        def encode(model: Any, rows: int, length: int = length, hidden: bool = not is_t5) -> Any:
            ids = torch.zeros(rows, length, dtype=torch.int64)
            return model(input_ids=ids, output_hidden_states=hidden)

        spec = plain_spec(partial(model_class, settings))
        name = {"text_encoder": "CLIP text encoder", "text_encoder_2": "CLIP text encoder 2"}
        found.append(
            Frozen(name.get(part, "T5"), spec, dtype, "at loading", "load", ENCODE_BATCH, encode)
        )
    return found
