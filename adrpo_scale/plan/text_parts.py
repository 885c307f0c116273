"""Language models as `TextDomain` uses them: a pass over whole sequences, and one over a token with
keys and values in a cache. Sequences have the greatest length that the config allows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adrpo_scale.config import RunConfig
from adrpo_scale.domains.language_model import (
    LINEAR,
    checkpoint_activations,
    embedding_units,
    language_model_spec,
)
from adrpo_scale.domains.scoring import Targets, install
from adrpo_scale.models import DTYPES, LoraConfig, ModelSpec
from adrpo_scale.plan.parts import NO_WEIGHTS, Frozen, Step, Workload, lora_of, plain_spec, spec_of
from adrpo_scale.plan.shapes import config_folder

MLP = ("gate_proj", "up_proj", "down_proj")


def text_workload(config: RunConfig) -> Workload:
    from transformers import AutoConfig

    domain = config.domain
    folder = config_folder(domain.model, "domain.model")
    settings = AutoConfig.from_pretrained(folder, local_files_only=True)
    attention = "eager" if domain.attention == "eager" else "sdpa"  # flash needs the same memory
    lora = lora_of(config)
    settings = getattr(settings, "thinker_config", settings)
    hears = domain.name == "audio"
    spec = spec_of(causal_spec(settings, attention, lora, hears))
    prompt, new = domain.chat.max_prompt_tokens, domain.rollout.max_new_tokens

    def train(model: Any, rows: int) -> Tensor:
        ids = torch.zeros(rows, prompt + new, dtype=torch.int64)
        segment = torch.arange(rows).repeat_interleave(new)
        places = (torch.arange(new) + prompt - 1).repeat(rows)
        tokens = torch.zeros(rows * new, dtype=torch.int64)
        targets = Targets(segment, places, tokens, domain.rollout.temperature, domain.head_chunk)
        logp, entropy = model(input_ids=ids, score=targets)
        return logp.sum() + 0.0 * entropy.sum()

    text = settings.get_text_config()
    return Workload(
        spec=spec,
        reference=None if lora is not None else replace(spec, lora=None),
        train=train,
        rollout=(
            Step("prompts", partial(_prefill, length=prompt), 1, per_group=True),
            Step("tokens", partial(_decode, length=prompt + new), new),
        ),
        frozen=(_tower(settings, attention, DTYPES[config.engine.dtype]),) if hears else (),
        tokens=prompt + new,
        head_bytes=4 * domain.head_chunk * text.vocab_size,
        not_counted=("encoding of clips",) if hears else (),
    )


def causal_spec(settings: Any, attention: str, lora: LoraConfig | None, hears: bool) -> ModelSpec:
    """Of a language model, or of Qwen2.5-Omni's thinker. hears: its towers are no part of it."""
    from transformers import AutoModelForCausalLM

    if type(settings) in AutoModelForCausalLM._model_mapping:
        return language_model_spec(settings, attention, NO_WEIGHTS, lora)
    return _thinker_spec(settings, attention, lora, hears)


def _thinker_spec(settings: Any, attention: str, lora: LoraConfig | None, hears: bool) -> ModelSpec:
    from transformers import Qwen2_5OmniThinkerForConditionalGeneration as Thinker

    def build() -> nn.Module:
        model = Thinker._from_config(settings, attn_implementation=attention)
        if hears:
            del model.model.audio_tower, model.model.visual
        install(model)
        return model

    # Names of whole paths: the towers have layers of the same names.
    layers = range(settings.get_text_config().num_hidden_layers)
    parts = [f"{'mlp' if name in MLP else 'self_attn'}.{name}" for name in LINEAR]
    return ModelSpec(
        build=build,
        weights=NO_WEIGHTS,
        blocks=("Qwen2_5OmniDecoderLayer",),  # the towers' layers belong to the root
        units=embedding_units,
        lora=lora,
        lora_targets=tuple(f"language_model.layers.{n}.{part}" for n in layers for part in parts),
        checkpoint_activations=checkpoint_activations,
    )


def _tower(settings: Any, attention: str, dtype: torch.dtype) -> Frozen:
    """The audio domain's, whole on every rank. What encoding clips takes is not counted."""
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder

    def build() -> nn.Module:
        return Qwen2_5OmniAudioEncoder._from_config(
            settings.audio_config, attn_implementation=attention
        )

    def nothing(model: Any, rows: int) -> None:
        return None

    return Frozen("audio tower", plain_spec(build), dtype, "replicated", "rollout", 1, nothing)


def _prefill(model: Any, rows: int, length: int) -> Any:
    """As `decoding._prefill`: every different prompt once, padded on the left."""
    from transformers import DynamicCache

    return model(
        input_ids=torch.zeros(rows, length, dtype=torch.int64),
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        position_ids=torch.zeros(rows, length, dtype=torch.int64),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    )


def _decode(model: Any, rows: int, length: int) -> Any:
    """The last token of `rows` samples: their caches are full, and one layer's is copied."""
    cache = full_cache(model, rows, length - 1)
    logits = model(
        input_ids=torch.zeros(rows, 1, dtype=torch.int64),
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        position_ids=torch.zeros(rows, 1, dtype=torch.int64),
        past_key_values=cache,
        use_cache=True,
    ).logits[:, -1]
    chances = logits.float().softmax(-1)
    return cache, chances.cumsum(-1)


def full_cache(model: Any, rows: int, length: int) -> Any:
    """Keys and values of `length` tokens."""
    from transformers import DynamicCache

    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = DynamicCache(config=model.config)
    shape = (rows, text.num_key_value_heads, length, width)
    for layer in range(text.num_hidden_layers):
        keys = torch.empty(shape, dtype=model.dtype)
        cache.update(keys, torch.empty_like(keys), layer)
    return cache
