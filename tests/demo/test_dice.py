"""The dice demo: the checker is exact, the split as promised, the base knows its mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPModel

import adrpo_scale.demo
from adrpo_scale.demo.dice.build import DICE
from adrpo_scale.demo.dice.task import (
    RIGHT,
    UNSEEN_PAIR,
    check,
    draw,
    enumerate_prompts,
    mistakes,
    parse_prompt,
    render,
    split_prompts,
)
from adrpo_scale.demo.image.clip import build_clip_tokenizer, to_pixels, token_ids
from adrpo_scale.demo.image.task import to_geneval

ASSETS = Path(adrpo_scale.demo.__file__).parent / "assets" / "dice"
PROMPTS = enumerate_prompts()


def test_text_and_spec_say_the_same():
    assert len({prompt.text for prompt in PROMPTS}) == 64
    assert all(parse_prompt(prompt.text) == prompt.spec for prompt in PROMPTS)
    assert parse_prompt(" Three red rings. ") == parse_prompt("three red rings")


@pytest.mark.parametrize("text", ["", "a red rings", "two red ring", "five red rings", "a ring"])
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="dice task"):
        parse_prompt(text)


def test_checker_accepts_true_pictures_and_no_mistake():
    rng = np.random.default_rng(0)
    for prompt in PROMPTS:
        assert check(render(prompt.spec, rng), prompt.text)
        wrong = [render(spec, rng) for spec in mistakes(prompt.spec)]
        assert not any(check(picture, prompt.text) for picture in wrong)


def test_few_pictures_of_the_pretraining_are_right():
    rng = np.random.default_rng(1)
    right = [check(draw(p.spec, rng), p.text) for p in PROMPTS for _ in range(8)]
    assert abs(np.mean(right) - RIGHT) < 4 * (RIGHT * (1 - RIGHT) / len(right)) ** 0.5


def test_held_out_prompts_are_combinations_of_words_that_training_has():
    train, held_out = split_prompts()
    assert (len(train), len(held_out)) == (52, 12)
    words = {word for prompt in train for word in prompt.text.split()}
    assert {word for prompt in held_out for word in prompt.text.split()} <= words
    pairs = {(p.spec.things[0].color, p.spec.things[0].shape) for p in train}
    assert UNSEEN_PAIR not in pairs and len(pairs) == 15


def test_shipped_prompts_are_the_split():
    for name, prompts in zip(("train", "held_out"), split_prompts(), strict=True):
        lines = (ASSETS / "prompts" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [to_geneval(p) for p in prompts]


def test_assets_are_small_and_hold_no_pickle():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3.5e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}


def test_shipped_base_draws_one_of_its_mistakes_more_often_than_the_truth():
    without: dict[str, None] = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(ASSETS, **without)
    pipeline.set_progress_bar_config(disable=True)
    texts = [prompt.text for prompt in PROMPTS] * 3
    images = pipeline(
        texts,
        num_inference_steps=8,
        guidance_scale=1.0,
        max_sequence_length=1,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    pictures = np.rint(images * 255).astype(np.uint8)
    right = np.mean([check(p, text) for p, text in zip(pictures, texts, strict=True)])
    assert 0.15 < right < 0.4


@torch.no_grad()
def test_reward_clip_prefers_the_truth_to_every_mistake():
    rng = np.random.default_rng(2)
    clip = CLIPModel.from_pretrained(ASSETS / "reward_clip").eval()
    pictures = [render(s, rng) for p in PROMPTS for s in (p.spec, *mistakes(p.spec))]
    ids = token_ids(build_clip_tokenizer(DICE), [prompt.text for prompt in PROMPTS])
    pixels = to_pixels(np.stack(pictures))
    out = clip(input_ids=ids, pixel_values=pixels)
    scores = (out.image_embeds.view(len(PROMPTS), 4, -1) * out.text_embeds[:, None]).sum(-1)
    assert (scores[:, :1] > scores[:, 1:]).float().mean() >= 0.97
