"""A small Qwen3 with random weights in the real folder layout, for tests of the text domain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import assign, parse_config, parse_override

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|> ' + m['role'] + ' ' + m['content'] + ' <|im_end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant ' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think> </think> ' }}"
    "{% endif %}{% endif %}"
)
WORDS = ["<pad>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "<think>"]
WORDS += ["</think>", "<answer>", "</answer>", *(f"w{i}" for i in range(54))]
PROMPTS = ["w1 w2", "w3", "w4 w5 w6 w7", "w8 w9", "w10", "w11 w12 w13"]


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<|im_end|>", unk_token="w0"
    )
    fast.chat_template = template
    return fast


def tiny_config(**changes: Any) -> Qwen3Config:
    settings: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    return Qwen3Config(**(settings | changes))


def save_tiny(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A causal language model and its tokenizer."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(tiny_config(**changes))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_reward(folder: Path, *, seed: int = 1, **changes: Any) -> Path:
    torch.manual_seed(seed)
    model = Qwen3ForSequenceClassification(tiny_config(**({"num_labels": 1} | changes)))
    nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_prompts(path: Path, texts: Sequence[str] = PROMPTS) -> Path:
    rows = [{"prompt": text, "answer": f"w{n}"} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_config(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run of seconds on the model in `folder`, made if it is not there."""
    if not (folder / "config.json").is_file():
        save_tiny(folder)
    prompts = folder / "prompts.jsonl"
    if not prompts.is_file():
        save_prompts(prompts)
    data: dict[str, Any] = {
        "iterations": 1,
        "domain": {
            "name": "text",
            "model": str(folder),
            "rollout_chunk": 8,
            "chat": {"max_prompt_tokens": 16},
            "rollout": {"max_new_tokens": 12},
            "evaluation": {"max_new_tokens": 12},
        },
        "algorithm": {
            "name": "adrpo",
            "beta0": 0.04,
            "advantage_min": -0.04,
            "advantage_max": 0.04,
            "scale": "group_std",
        },
        "rewards": [
            {"kind": "function", "path": "tests.support.tiny_text:many_kinds", "name": "kinds"}
        ],
        "prompts": {"train": str(prompts), "per_iteration": 4, "group_size": 4},
        "optimizer": {"micro_batch": 4, "learning_rate": 1e-3},
        "evaluation": {"every": 0, "prompts": 4, "samples_per_prompt": 2},
    }
    for override in overrides:
        assign(data, *parse_override(override))
    return parse_config(data)


def many_kinds(completions: Sequence[Any], prompts: Sequence[Any]) -> list[float]:
    """A reward that any model can raise: different words, less a tenth for every token."""
    return [len(set(c.text.split())) - 0.1 * len(c.tokens) for c in completions]
