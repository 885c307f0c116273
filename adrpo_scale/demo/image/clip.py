"""The small CLIP of the image task: tokenizers, contrastive training, the reward folder.

Its text tower is also the text encoder of the small Stable Diffusion 3, and the whole model is the
reward. It is trained on rendered images of all prompts, including held-out ones, because a real
CLIP knows more than the prompts of reinforcement learning.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    T5TokenizerFast,
)

from adrpo_scale.demo.image.task import ImagePrompt, render
from adrpo_scale.demo.image.world import IMAGE, Draw, World

WIDTH = 64  # hidden size of both towers
PROJECTION = 48


@dataclass(frozen=True)
class ClipRecipe:
    """Training of the CLIP; about 60 CPU-seconds on one thread."""

    steps: int = 900
    batch: int = 128  # distinct prompts, so that no negative is a copy of the positive
    learning_rate: float = 2e-3
    warmup: int = 50
    noise: float = 0.15  # largest standard deviation of pixel noise, in units of [-1, 1]


def _words(world: World) -> list[str]:
    return sorted({word for prompt in world.prompts for word in prompt.text.split()})


def _learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make each word one token: the commonest pair first, ties by name.

    `BpeTrainer` breaks ties in the order of a hash table, so two calls in one process give
    different token ids.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in itertools.pairwise(word))
        if not counts:
            return merges
        left, right = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append((left, right))
        for word in pieces:
            for i in range(len(word) - 2, -1, -1):
                if word[i : i + 2] == [left, right]:
                    word[i : i + 2] = [left + right]


@cache
def build_clip_tokenizer(world: World = IMAGE) -> CLIPTokenizer:
    """A CLIP tokenizer with byte-pair merges learnt on the task: one token per word of the task.

    Other text becomes single characters. Every printable ASCII character is in the vocabulary, once
    inside and once at the end of a word: an unknown one would become the end-of-text token, at
    which the text model pools.
    """
    marks = string.ascii_lowercase + string.digits + string.punctuation
    merges = _learn_merges(_words(world))
    tokens = [*marks, *(mark + "</w>" for mark in marks), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    # vocab= and merges=: files passed as vocab_file= are silently ignored by transformers 5.
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=world.tokens)


def build_t5_tokenizer(world: World = IMAGE) -> T5TokenizerFast:
    """A T5 tokenizer: one token per word of the task, single characters for other text."""
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocab += [("▁" + word, -1.0) for word in _words(world)]
    vocab += [(mark, -10.0) for mark in string.ascii_lowercase + string.digits + ".,"]
    return T5TokenizerFast(vocab=vocab, extra_ids=0, model_max_length=world.tokens)


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """Token ids int64 [N, the tokenizer's longest], padded and truncated as in the diffusers
    pipeline."""
    batch = tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return batch.input_ids


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 [N, S, S, 3] → float32 [N, 3, S, S] in [-1, 1]: CLIP's and the VAE's input."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def render_dataset(
    prompts: Sequence[ImagePrompt], copies: int, seed: int, draw: Draw = render
) -> np.ndarray:
    """`copies` images of every prompt: uint8 [len(prompts), copies, S, S, 3]."""
    rng = np.random.default_rng(seed)
    return np.stack([[draw(p.spec, rng) for _ in range(copies)] for p in prompts])


def _build_config(tokenizer: CLIPTokenizer, world: World) -> CLIPConfig:
    tower = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    text = tower | {
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": world.tokens,
        "projection_dim": PROJECTION,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,  # without it the wrong token is pooled
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower | {
        "num_hidden_layers": 3,
        "image_size": world.sheet.size,
        "patch_size": world.sheet.cell,
        "projection_dim": PROJECTION,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=PROJECTION)


def train_clip(
    seed: int, recipe: ClipRecipe, log: Callable[[str], object], world: World = IMAGE
) -> CLIPModel:
    """Trains the CLIP on rendered images; returns it in eval mode, float32, frozen.

    Each image has its own amount of pixel noise, because the reward must rank a sampler's images.
    """
    torch.manual_seed(seed)
    prompts = world.prompts
    tokenizer = build_clip_tokenizer(world)
    ids_PT = token_ids(tokenizer, [prompt.text for prompt in prompts])
    images = render_dataset(prompts, copies=60, seed=seed + 1, draw=world.render)
    model = CLIPModel(_build_config(tokenizer, world)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, recipe.steps, pct_start=recipe.warmup / recipe.steps
    )
    rng = np.random.default_rng(seed + 2)
    for step in range(recipe.steps):
        rows = rng.choice(len(prompts), size=recipe.batch, replace=False)
        pixels = to_pixels(images[rows, rng.integers(images.shape[1], size=recipe.batch)])
        amount = recipe.noise * torch.rand(recipe.batch, 1, 1, 1)
        pixels = pixels + amount * torch.randn_like(pixels)
        out = model(input_ids=ids_PT[rows], pixel_values=pixels, return_loss=True)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            log(f"clip step {step + 1}/{recipe.steps}: loss {out.loss.item():.3f}")
    return model.eval().requires_grad_(False)


def save_reward_clip(model: CLIPModel, to: Path, world: World = IMAGE) -> None:
    """Writes the CLIP and its processor as a folder that CLIPModel and CLIPProcessor load."""
    size = world.sheet.size
    half = [0.5, 0.5, 0.5]  # pixels in [-1, 1], the convention of the VAE
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=half,
        image_std=half,
    )
    model.save_pretrained(to)
    CLIPProcessor(image_processor, build_clip_tokenizer(world)).save_pretrained(to)


@torch.no_grad()
def clip_cosines(model: CLIPModel, images: np.ndarray, texts: Sequence[str]) -> Tensor:
    """Cosine of each image with its text, float32 [N]. images: uint8 [N, 20, 20, 3]."""
    out = model(input_ids=token_ids(build_clip_tokenizer(), texts), pixel_values=to_pixels(images))
    return (out.image_embeds * out.text_embeds).sum(-1)
