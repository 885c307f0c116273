"""The transformer of Stable Diffusion 3: its `ModelSpec`, and fixed inputs for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.engines.spec import LoraConfig, ModelSpec
from adrpo_scale.hub.weights import WeightSource

ATTENTION = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "to_add_out",
    "add_q_proj",
    "add_k_proj",
    "add_v_proj",
)
WEIGHTS = "diffusion_pytorch_model"


def transformer_spec(
    config: Mapping[str, Any], weights: WeightSource, lora: LoraConfig | None
) -> ModelSpec:
    """The `ModelSpec` of the transformer of that config."""
    from diffusers import SD3Transformer2DModel

    return ModelSpec(
        build=lambda: SD3Transformer2DModel.from_config(config),
        weights=weights,
        blocks=("JointTransformerBlock",),
        lora=lora,
        lora_targets=ATTENTION,
        checkpoint_activations=lambda model: model.enable_gradient_checkpointing(),
    )


def fixed_inputs(transformer: Mapping[str, Any]) -> dict[str, Tensor]:
    """Two constant rows of inputs for the transformer, of at most 4 × 4 patches and 5 tokens."""
    side = transformer["patch_size"] * min(4, transformer["pos_embed_max_size"])
    shapes = {
        "hidden_states": (2, transformer["in_channels"], side, side),
        "encoder_hidden_states": (2, 5, transformer["joint_attention_dim"]),
        "pooled_projections": (2, transformer["pooled_projection_dim"]),
    }
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return inputs | {"timestep": torch.tensor([800.0, 200.0])}
