"""Builds the dice demo's models and prompts, in the layout of the image demo.

`diffusers.StableDiffusion3Pipeline.from_pretrained(folder)` loads it; call the pipeline with
`num_inference_steps=8, guidance_scale=1.0, max_sequence_length=1`. Seeds and steps are pinned: the
same machine writes the same bytes again. Models written by other machines differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adrpo_scale.demo.dice.task import SHEET, draw, enumerate_prompts, render, split_prompts
from adrpo_scale.demo.image.build import build_models, write_prompts
from adrpo_scale.demo.image.clip import ClipRecipe
from adrpo_scale.demo.image.sd3 import Sd3Recipe
from adrpo_scale.demo.image.world import World

DICE = World(
    enumerate_prompts(), SHEET, render, draw, tokens=5, t5_tokens=1, heads=3, head=16
)  # 48 wide; a cell has 27 numbers, and a narrower transformer cannot let the noise through
CLIP = ClipRecipe(steps=250, batch=64)
SD3 = Sd3Recipe(steps=2400, batch=48, copies=100)


def build_dice(
    to: Path,
    *,
    seed: int = 0,
    log: Callable[[str], object] = print,
    clip_recipe: ClipRecipe = CLIP,
    sd3_recipe: Sd3Recipe = SD3,
) -> None:
    """Trains the small CLIP on true pictures, pretrains the small Stable Diffusion 3 on pictures of
    which 82 % are wrong, writes both and the prompts.

    About 90 CPU-seconds on one thread with the default recipes; 3 MB. Files in `to` of the same
    names are replaced. The global random state and the number of threads are left as they were.
    """
    build_models(to, seed, clip_recipe, sd3_recipe, log, DICE)
    train, held_out = split_prompts()
    write_prompts(train, to / "prompts" / "train.jsonl")
    write_prompts(held_out, to / "prompts" / "held_out.jsonl")
