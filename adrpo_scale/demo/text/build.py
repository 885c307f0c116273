"""Builds the text demos' models and prompts: one transformers folder each.

    text/      config.json  model.safetensors  tokenizer.json …
               prompts/train.jsonl  prompts/held_out.jsonl
    text_rm/   the same, and reward_model/ (Qwen3ForSequenceClassification with its own tokenizer)

`AutoModelForCausalLM` and `AutoTokenizer` load either folder by `from_pretrained(folder)`. Seeds
and steps are pinned: the same machine writes the same bytes again. Models written by other machines
differ by rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from adrpo_scale.demo.text import rm_task as text_rm_task
from adrpo_scale.demo.text import task as text_task
from adrpo_scale.demo.text.model import (
    REVIEW_SFT,
    TEXT_SFT,
    Batch,
    Preference,
    RewardRecipe,
    SftRecipe,
    build_policy,
    build_policy_tokenizer,
    build_reward_model,
    build_reward_tokenizer,
    chat_ids,
    sample,
    sft_batch,
    train_reward_model,
    train_sft,
)

REASONING = 0.2  # share of the arithmetic completions that show worked steps
REVIEW_TOKENS = 24  # longest sampled review, including its end
SAMPLED_AT_ONCE = 250  # reviews

Rows = list[tuple[str, str]]  # (prompt, completion)


@contextmanager
def pinned() -> Iterator[None]:
    """A context with one CPU thread, which restores the global random state afterwards."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the order of additions depends on it, and so the bytes
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)


def write_rows(rows: Iterable[Mapping[str, object]], to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _save_policy(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, to: Path) -> None:
    # float32: transformers loads the stored dtype, and 16 bits would slow training on a CPU.
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def _batches(
    tokenizer: PreTrainedTokenizerFast, draw_rows: Callable[[int], Rows]
) -> Callable[[int], Batch]:
    def draw(count: int) -> Batch:
        rows = draw_rows(count)
        prompts = [chat_ids(tokenizer, prompt) for prompt, _ in rows]
        return sft_batch(tokenizer, prompts, [completion for _, completion in rows])

    return draw


def _arithmetic_rows(held_out: Sequence[text_task.TextPrompt], seed: int) -> Callable[[int], Rows]:
    """Draws batches of (prompt, completion) from problems that are not held out."""
    banned = {text_task.problem_of(prompt) for prompt in held_out}
    rng = np.random.default_rng(seed)

    def draw(count: int) -> Rows:
        rows: Rows = []
        while len(rows) < count:
            prompt = text_task.draw_prompt(rng)
            if text_task.problem_of(prompt) not in banned:
                reasons = bool(rng.random() < REASONING)
                text = text_task.draw_demonstration(prompt, rng, with_reasoning=reasons)
                rows.append((prompt.text, text))
        return rows

    return draw


def build_text(
    to: Path,
    *,
    seed: int = 0,
    log: Callable[[str], object] = print,
    recipe: SftRecipe = TEXT_SFT,
) -> None:
    """Trains the arithmetic demo's base policy; writes it, its tokenizer and the prompts.

    About three minutes on one CPU thread with the default recipe; 2.5 MB. Files in `to` of the same
    names are replaced. The global random state and the number of threads are left as they were.
    """
    train, held_out = text_task.split_prompts(seed)
    with pinned():
        tokenizer = build_policy_tokenizer(text_task.words())
        model = build_policy(recipe.size, tokenizer, seed)
        rows = _arithmetic_rows(held_out, seed + 1)
        train_sft(model, _batches(tokenizer, rows), recipe, log)
        _save_policy(model, tokenizer, to)
    write_rows(map(text_task.to_row, train), to / "prompts" / "train.jsonl")
    write_rows(map(text_task.to_row, held_out), to / "prompts" / "held_out.jsonl")


def _review_rows(
    prompts: Sequence[text_rm_task.ReviewPrompt], rng: np.random.Generator
) -> Callable[[int], Rows]:
    """Draws batches of (prompt, review)."""

    def draw(count: int) -> Rows:
        chosen = [prompts[i] for i in rng.integers(len(prompts), size=count)]
        return [(prompt.text, text_rm_task.draw_review(prompt, rng)) for prompt in chosen]

    return draw


def _draw_preferences(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[text_rm_task.ReviewPrompt],
    recipe: RewardRecipe,
    rng: np.random.Generator,
) -> list[Preference]:
    """Pairs of the policy's own samples, with noisy labels."""
    texts = [prompts[i].text for i in rng.integers(len(prompts), size=recipe.pairs)]
    sides: list[list[str]] = [[], []]
    for side in sides:
        for start in range(0, len(texts), SAMPLED_AT_ONCE):
            some = texts[start : start + SAMPLED_AT_ONCE]
            side += sample(policy, tokenizer, some, max_new_tokens=REVIEW_TOKENS)
    pairs = []
    for text, one, two in zip(texts, *sides, strict=True):
        first = text_rm_task.prefers_first(text, one, two, recipe.noise, rng)
        pairs.append(Preference(text, *((one, two) if first else (two, one))))
    return pairs


def build_review_reward(
    policy: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[text_rm_task.ReviewPrompt],
    to: Path,
    seed: int,
    rng: np.random.Generator,
    log: Callable[[str], object] = print,
    recipe: RewardRecipe | None = None,
) -> None:
    """Trains a reward model on noisy preferences among the policy's own reviews; writes it.

    About a minute on one CPU thread with the default recipe. rng: draws prompts and noise. The
    global random state and the number of threads are left as they were.
    """
    recipe = recipe or RewardRecipe()
    with pinned():
        torch.manual_seed(seed)
        preferences = _draw_preferences(policy, tokenizer, prompts, recipe, rng)
        reward_tokenizer = build_reward_tokenizer(text_rm_task.words())
        model = build_reward_model(recipe.size, reward_tokenizer, seed)
        train_reward_model(model, reward_tokenizer, preferences, seed, recipe, log)
    model.save_pretrained(to)
    reward_tokenizer.save_pretrained(to)


def build_text_rm(
    to: Path,
    *,
    seed: int = 0,
    log: Callable[[str], object] = print,
    recipe: SftRecipe = REVIEW_SFT,
    reward_recipe: RewardRecipe | None = None,
) -> None:
    """Trains the review demo's base policy and its reward model; writes both and the prompts.

    About two minutes on one CPU thread with the default recipes; 1.6 MB. Otherwise as `build_text`.
    """
    train, held_out = text_rm_task.split_prompts(seed)
    rng = np.random.default_rng(seed + 1)
    with pinned():
        tokenizer = build_policy_tokenizer(text_rm_task.words())
        policy = build_policy(recipe.size, tokenizer, seed)
        train_sft(policy, _batches(tokenizer, _review_rows(train, rng)), recipe, log)
        _save_policy(policy, tokenizer, to)
        rewarded = to / "reward_model"
        build_review_reward(policy, tokenizer, train, rewarded, seed, rng, log, reward_recipe)
    write_rows(({"prompt": prompt.text} for prompt in train), to / "prompts" / "train.jsonl")
    write_rows(({"prompt": prompt.text} for prompt in held_out), to / "prompts" / "held_out.jsonl")
