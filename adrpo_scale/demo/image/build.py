"""Builds the image demo's models and prompts: one folder in the layout of Stable Diffusion 3.

    model_index.json   transformer/   vae/   scheduler/
    text_encoder/   text_encoder_2/   text_encoder_3/   tokenizer/   tokenizer_2/   tokenizer_3/
    reward_clip/   prompts/train.jsonl   prompts/held_out.jsonl

`diffusers.StableDiffusion3Pipeline.from_pretrained(folder)` loads it; call the pipeline with
`num_inference_steps=8, guidance_scale=1.0, max_sequence_length=12`. Seeds and steps are pinned: the
same machine writes the same bytes again. Models written by other machines differ by rounding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from adrpo_scale.demo.image.clip import (
    ClipRecipe,
    build_clip_tokenizer,
    build_t5_tokenizer,
    save_reward_clip,
    train_clip,
)
from adrpo_scale.demo.image.sd3 import (
    Sd3Recipe,
    build_identity_vae,
    build_t5,
    build_text_encoder,
    pretrain_transformer,
)
from adrpo_scale.demo.image.task import ImagePrompt, split_prompts, to_geneval
from adrpo_scale.demo.image.world import IMAGE, World


def write_prompts(prompts: Iterable[ImagePrompt], to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(to_geneval(prompt)) + "\n" for prompt in prompts]
    to.write_text("".join(lines), encoding="utf-8")


def _save_all(
    to: Path,
    seed: int,
    clip_recipe: ClipRecipe,
    sd3_recipe: Sd3Recipe,
    log: Callable[[str], object],
    world: World,
) -> None:
    clip = train_clip(seed, clip_recipe, log, world)
    save_reward_clip(clip, to / "reward_clip", world)
    encoder = build_text_encoder(clip)
    transformer = pretrain_transformer(encoder, seed, sd3_recipe, log, world)
    tokenizer_3 = build_t5_tokenizer(world)
    pipeline = StableDiffusion3Pipeline(
        # float16 halves the largest file, with three more bits of mantissa than bfloat16;
        # diffusers loads it as float32 unless told otherwise.
        transformer=transformer.to(torch.float16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=build_identity_vae(world),
        text_encoder=encoder,
        tokenizer=build_clip_tokenizer(world),
        text_encoder_2=encoder,
        tokenizer_2=build_clip_tokenizer(world),
        # float32: transformers loads the stored dtype, and the pipeline needs one for all.
        text_encoder_3=build_t5(seed, len(tokenizer_3)),
        tokenizer_3=tokenizer_3,
    )
    pipeline.save_pretrained(to, safe_serialization=True)


def build_models(
    to: Path,
    seed: int,
    clip_recipe: ClipRecipe,
    sd3_recipe: Sd3Recipe,
    log: Callable[[str], object],
    world: World,
) -> None:
    """Writes the models of a world. The global random state and the number of threads are left as
    they were."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # the order of additions depends on it, and so the bytes
        with torch.random.fork_rng(devices=[]):
            _save_all(to, seed, clip_recipe, sd3_recipe, log, world)
    finally:
        torch.set_num_threads(threads)


def build_image(
    to: Path,
    *,
    seed: int = 0,
    log: Callable[[str], object] = print,
    clip_recipe: ClipRecipe | None = None,
    sd3_recipe: Sd3Recipe | None = None,
) -> None:
    """Trains the small CLIP, pretrains the small Stable Diffusion 3, writes both and the prompts.

    About five minutes on one CPU thread with the default recipes; 4 MB. Files in `to` of the same
    names are replaced. The global random state and the number of threads are left as they were.
    """
    recipes = clip_recipe or ClipRecipe(), sd3_recipe or Sd3Recipe()
    build_models(to, seed, *recipes, log, IMAGE)
    train, held_out = split_prompts(seed=seed)
    write_prompts(train, to / "prompts" / "train.jsonl")
    write_prompts(held_out, to / "prompts" / "held_out.jsonl")
