"""The small language models of the text demos: tokenizers, Qwen3 builders, training recipes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

POSITIONS = 128  # longest sequence of either demo's models
IGNORED = -100  # label of a token without loss

Policy = TypeVar("Policy", bound=PreTrainedModel)
Batch = dict[str, Tensor]  # keyword arguments of a model

_CHAT = (
    "{% for message in messages %}"
    "{{ '<|im_start|> ' + message['role'] + '\n' + message['content'] + ' <|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class ModelSize:
    """The dimensions of a Qwen3."""

    hidden: int
    layers: int
    intermediate: int
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32


@dataclass(frozen=True)
class SftRecipe:
    """Supervised training of a base policy; stopped early, so that it still makes errors."""

    size: ModelSize
    steps: int
    batch: int = 64
    learning_rate: float = 3e-3
    warmup: int = 30


# About 140 CPU-seconds on one thread. With fewer steps, reasoning is wrong too often.
TEXT_SFT = SftRecipe(ModelSize(hidden=128, layers=3, intermediate=384), steps=600)
# About 40 CPU-seconds.
REVIEW_SFT = SftRecipe(ModelSize(hidden=96, layers=2, intermediate=256), steps=350)


def _word_level(vocab: Sequence[str], unk: str) -> Tokenizer:
    """One token per word, split at white space; decoding joins them with single spaces."""
    ids = {word: index for index, word in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def build_policy_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with a ChatML template.

    Only `<pad>`, `<unk>` and the chat markers are special: tags such as `<think>` are ordinary
    words, since special ones would vanish when decoding with `skip_special_tokens`.
    """
    special = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>"]
    roles = ["system", "user", "assistant"]
    vocab = list(dict.fromkeys([*special, *roles, *words]))
    return PreTrainedTokenizerFast(
        tokenizer_object=_word_level(vocab, "<unk>"),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=_CHAT,
    )


def _token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """The entries of a model's config about its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _shape(size: ModelSize) -> dict[str, object]:
    return {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "head_dim": size.head_dim,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
    }


def build_policy(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen3ForCausalLM:
    """A policy before training, float32."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**_shape(size), **_token_ids(tokenizer)))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def chat_ids(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Token ids of one user message and the start of the answer."""
    messages = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )


def sft_batch(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[str],
) -> Batch:
    """input_ids, attention_mask and labels, int64 [B, T], right-padded. prompts: token ids. Only
    completions and their ends carry loss."""
    ends = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in completions]
    length = max(len(p) + len(e) for p, e in zip(prompts, ends, strict=True))
    ids = torch.full((len(prompts), length), tokenizer.pad_token_id)
    labels = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        total = len(prompt) + len(end)
        ids[row, :total] = torch.tensor([*prompt, *end])
        labels[row, len(prompt) : total] = torch.tensor(end)
        mask[row, :total] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _rising(warmup: int, steps: int) -> float:
    """Share of the steps in which the learning rate rises, at most a half."""
    return min(0.5, warmup / steps)


def train_sft(
    model: Policy,
    draw_batch: Callable[[int], Batch],
    recipe: SftRecipe,
    log: Callable[[str], object],
) -> Policy:
    """Trains by cross-entropy on batches of `recipe.batch` rows; returns the model in eval mode."""
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.learning_rate,
        recipe.steps,
        pct_start=_rising(recipe.warmup, recipe.steps),
    )
    for step in range(recipe.steps):
        loss = model(**draw_batch(recipe.batch)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            log(f"sft step {step + 1}/{recipe.steps}: loss {loss.item():.3f}")
    return model.eval()


@dataclass(frozen=True)
class RewardRecipe:
    """Training of a reward model on preference pairs (Bradley and Terry); about 60 CPU-seconds.

    The reward model is right on the base policy's reviews and wrong beyond them. A larger one, or
    one that begins with the policy's weights, is not fooled within a hundred iterations.
    """

    size: ModelSize = ModelSize(hidden=64, layers=2, intermediate=192)
    pairs: int = 2500
    noise: float = 0.12  # share of labels that are wrong
    epochs: int = 4
    batch: int = 64  # pairs per step
    learning_rate: float = 1e-3
    warmup: int = 20
    weight_decay: float = 0.1


@dataclass(frozen=True)
class Preference:
    """A pair of completions of one prompt."""

    prompt: str
    chosen: str
    rejected: str


_REWARD_CHAT = (
    "{{ '<bos>' }}{% for message in messages %}"
    "{{ ' <|' + message['role'] + '|> ' + message['content'] + ' <eos>' }}"
    "{% endfor %}"
)


def build_reward_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer that shares no id with the policy's, right-padded, with a template of its own.

    Like many reward models, both the tokenizer and the template put `<bos>` first: the template's
    text must be tokenised with `add_special_tokens=False`.
    """
    special = ["<eos>", "<bos>", "<|user|>", "<|assistant|>", "<pad>", "<unk>"]
    vocab = list(dict.fromkeys([*special, *reversed(words)]))
    tokenizer = _word_level(vocab, "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocab.index("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        padding_side="right",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=_REWARD_CHAT,
    )


def build_reward_model(
    size: ModelSize, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Qwen3ForSequenceClassification:
    """A reward model before training: one logit, float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(num_labels=1, **_shape(size), **_token_ids(tokenizer))
    return Qwen3ForSequenceClassification(config)


def reward_logits(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[tuple[str, str]],
) -> Tensor:
    """Raw logits [N] of (prompt, completion) rows, of any size."""
    chats = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completion in pairs
    ]
    batch = tokenizer.apply_chat_template(
        chats, tokenize=True, padding=True, return_tensors="pt", return_dict=True
    )
    return model(**batch).logits[:, 0]


def train_reward_model(
    model: Qwen3ForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    preferences: Sequence[Preference],
    seed: int,
    recipe: RewardRecipe,
    log: Callable[[str], object],
) -> Qwen3ForSequenceClassification:
    """Minimises −log σ(logit of the chosen − logit of the rejected); returns the model in eval
    mode."""
    model.train()
    steps = recipe.epochs * (len(preferences) // recipe.batch)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, steps, pct_start=_rising(recipe.warmup, steps)
    )
    rng = np.random.default_rng(seed)
    for step in range(steps):
        batch = [preferences[i] for i in rng.choice(len(preferences), recipe.batch, replace=False)]
        rows = [(pair.prompt, pair.chosen) for pair in batch]
        rows += [(pair.prompt, pair.rejected) for pair in batch]
        chosen, rejected = reward_logits(model, tokenizer, rows).chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0:
            agree = (chosen > rejected).float().mean().item()
            log(f"reward step {step + 1}/{steps}: loss {loss.item():.3f}, agreement {agree:.2f}")
    return model.eval()


@torch.no_grad()
def sample(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    greedy: bool = False,
) -> list[str]:
    """One completion per prompt, without special tokens; draws from the global generator."""
    ids = [chat_ids(tokenizer, prompt) for prompt in prompts]
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
    out = model.generate(
        **batch, max_new_tokens=max_new_tokens, do_sample=not greedy, temperature=1.0,
        top_k=0, top_p=1.0,
    )  # fmt: skip
    return tokenizer.batch_decode(out[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
