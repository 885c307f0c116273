"""The workload of `TextDomain`: a pass over whole sequences, and one over a single token with a
cache of keys and values. Sequences have the greatest length that the config allows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.domains.language_model import language_model_spec, read_config
from adrpo_scale.domains.logprobs import Beside, Targets
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.engines.workload import (
    NO_WEIGHTS,
    Clips,
    Frozen,
    Sampler,
    Step,
    Workload,
    lora_of,
    spec_of,
)
from adrpo_scale.hub.shapes import config_folder

_SHARED = (
    "completions that share their prompt's pass are counted as passes of their own: an upper bound"
)
_TWICE = (
    'backend = "process": the process of rollouts holds the weights and the caches of a rollout a '
    "second time, which is not counted"
)

Inputs = Callable[[int], dict[str, Tensor]]  # rows → further arguments of a pass


def text_workload(config: Any) -> Workload:
    """The workload of a config of the domain `text`."""
    folder = config_folder(config.model, "domain.model")
    settings = read_config(folder, config.model)
    spec = language_model_spec(settings, attention_of(config), NO_WEIGHTS, lora_of(config))
    return tokens_workload(config, spec_of(spec), vocabulary=settings.vocab_size)


def attention_of(config: Any) -> str:
    return "eager" if config.attention == "eager" else "sdpa"  # flash takes as much memory as sdpa


def tokens_workload(
    config: Any,
    spec: ModelSpec,
    *,
    vocabulary: int,
    inputs: Inputs = lambda rows: {},
    frozen: tuple[Frozen, ...] = (),
    clips: Clips | None = None,
) -> Workload:
    """The workload of a policy that generates tokens. spec: with shapes in place of weights.
    vocabulary: its size. inputs: further arguments of a pass, by rows. frozen: models beside it.
    """
    prompt, new = config.chat.max_prompt_tokens, config.rollout.max_new_tokens
    longer = config.evaluation.max_new_tokens / new

    def train(model: Any, rows: int, is_exact: bool = False) -> Tensor:
        ids = torch.zeros(rows, prompt + new, dtype=torch.int64)
        segment = torch.arange(rows).repeat_interleave(new)
        places = (torch.arange(new) + prompt - 1).repeat(rows)
        tokens = torch.zeros(rows * new, dtype=torch.int64)
        beside = _beside(model, rows * new, spec) if is_exact else None
        temperature = config.rollout.temperature
        targets = Targets(segment, places, tokens, temperature, config.head_chunk, beside)
        logp, entropy, *compared = model(input_ids=ids, targets=targets, **inputs(rows))
        return logp.sum() + 0.0 * entropy.sum() + sum(kl.sum() for kl in compared[:1])

    return Workload(
        spec=spec,
        reference=None if spec.lora is not None else replace(spec, lora=None),
        train=train,
        rollout=(
            Step("prompts", partial(_prefill, length=prompt, inputs=inputs), 1, per_group=True),
            Step(
                "tokens",
                partial(_decode, length=prompt + new),
                new,
                has_cache=True,
                is_captured=config.decoding == "graph",
                found=partial(full_cache, length=prompt + new - 1),
            ),
        ),
        frozen=frozen,
        evaluation=2 * longer,  # one greedy sample of each prompt more, in chunks of their own
        tokens=prompt + new,
        clips=clips,
        sampler=Sampler("vLLM", config.vllm_memory) if config.backend == "vllm" else None,
        exact=partial(train, is_exact=True),
        assumptions=(
            f"every prompt has {prompt} tokens and every completion {new}: the most that the "
            f"config allows; logits of {config.head_chunk} tokens at once, "
            f"{4 * config.head_chunk * vocabulary / 2**30:.2f} GiB",
            *([_SHARED] if config.shared_prefix else []),
            *([_TWICE] if config.backend == "process" else []),
        ),
    )


def _beside(model: Any, tokens: int, spec: ModelSpec) -> Beside:
    """What the reference's pass leaves: hidden states, and its output layer in full training."""
    config = model.config.get_text_config()
    hidden = torch.empty(tokens, config.hidden_size, dtype=model.dtype)
    if spec.lora is not None:
        return Beside(hidden)
    return Beside(hidden, torch.empty(config.vocab_size, config.hidden_size, dtype=model.dtype))


def _prefill(model: Any, rows: int, length: int, inputs: Inputs) -> Any:
    """As `decoding.prefill`: each different prompt once."""
    from transformers import DynamicCache

    return model(
        input_ids=torch.zeros(rows, length, dtype=torch.int64),
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        position_ids=torch.zeros(rows, length, dtype=torch.int64),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
        **inputs(rows),
    )


def _decode(model: Any, rows: int, length: int) -> Any:
    """The pass over the last token of `rows` samples, with full caches."""
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
    """A cache with the keys and values of `length` tokens."""
    from transformers import DynamicCache

    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = DynamicCache(config=model.config)
    shape = (rows, text.num_key_value_heads, length, width)
    for layer in range(text.num_hidden_layers):
        keys = torch.empty(shape, dtype=model.dtype)
        cache.update(keys, torch.empty_like(keys), layer)
    return cache
