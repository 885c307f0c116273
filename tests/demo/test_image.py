"""The image demo: the task's checker is exact, and the shipped models load and do what they say."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer, T5TokenizerFast

import adrpo_scale.demo
from adrpo_scale.demo.image.clip import render_dataset
from adrpo_scale.demo.image.task import (
    KINDS,
    Spec,
    Thing,
    check,
    enumerate_prompts,
    parse_image,
    parse_prompt,
    prompt_text,
    render,
    split_prompts,
    to_geneval,
)

ASSETS = Path(adrpo_scale.demo.__file__).parent / "assets" / "image"
PROMPTS = enumerate_prompts()


@cache
def _pipeline(with_t5: bool) -> StableDiffusion3Pipeline:
    without: dict[str, None] = {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(ASSETS, **({} if with_t5 else without))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _generate(with_t5: bool, texts: list[str]) -> np.ndarray:
    """uint8 [N, 20, 20, 3] at the demo's settings."""
    images = _pipeline(with_t5)(
        texts,
        num_inference_steps=8,
        guidance_scale=1.0,
        max_sequence_length=12,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return np.rint(images * 255).astype(np.uint8)


@cache
def _reward_clip() -> tuple[CLIPModel, CLIPProcessor]:
    folder = ASSETS / "reward_clip"
    return CLIPModel.from_pretrained(folder).eval(), CLIPProcessor.from_pretrained(folder)


@torch.no_grad()
def _rewards(images: np.ndarray, texts: list[str]) -> np.ndarray:
    """100·cosine [N], computed from the shipped files alone, as any user of the folder would."""
    model, processor = _reward_clip()
    pictures = [Image.fromarray(image) for image in images]
    inputs = processor(text=texts, images=pictures, padding=True, return_tensors="pt")
    out = model(**inputs)
    return (100 * (out.image_embeds * out.text_embeds).sum(-1)).numpy()


def test_there_are_444_prompts_of_six_kinds():
    assert len({prompt.text for prompt in PROMPTS}) == 444
    assert {prompt.spec.kind for prompt in PROMPTS} == set(KINDS)


def test_text_and_spec_say_the_same():
    assert all(parse_prompt(prompt.text) == prompt.spec for prompt in PROMPTS)
    assert all(prompt_text(prompt.spec) == prompt.text for prompt in PROMPTS)
    assert parse_prompt(" A red ring. ") == Spec((Thing("ring", "red"),))


@pytest.mark.parametrize(
    "text",
    [
        "", "a dog", "a red", "two red ring", "a red rings", "five rings",
        "two rings above a square", "a red ring below a ring", "a red ring and two squares",
    ],
)  # fmt: skip
def test_other_text_is_refused(text):
    with pytest.raises(ValueError, match="image task"):
        parse_prompt(text)


def test_checker_accepts_every_rendered_image():
    rng = np.random.default_rng(0)
    assert all(check(render(prompt.spec, rng), prompt.text) for prompt in PROMPTS)


def test_checker_rejects_mismatched_prompts():
    rng = np.random.default_rng(1)
    others = np.roll(np.arange(len(PROMPTS)), 137)
    accepted = [
        check(render(prompt.spec, rng), PROMPTS[other].text)
        for prompt, other in zip(PROMPTS, others, strict=True)
    ]
    assert np.mean(accepted) <= 0.04


def test_checker_stands_a_sampler_s_noise_but_not_ruins():
    rng = np.random.default_rng(2)
    image = render(parse_prompt("a red ring"), rng)
    noisy = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
    ruined = rng.integers(0, 256, size=image.shape, dtype=np.uint8)
    assert check(noisy, "a red ring")
    assert parse_image(ruined) is None and not check(ruined, "a red ring")
    faint = (image.astype(float) * 0.3 + np.median(image) * 0.7).astype(np.uint8)
    assert not check(faint, "a red ring")


def test_checker_refuses_other_images():
    with pytest.raises(ValueError, match="expected uint8"):
        check(np.zeros((32, 32, 3), np.uint8), "a red ring")
    with pytest.raises(ValueError, match="expected uint8"):
        check(np.zeros((20, 20, 3), np.float32), "a red ring")


def test_split_is_a_partition_in_proportion():
    train, held_out = split_prompts(seed=3, held_out=60)
    assert len(held_out) == 60 and set(train) | set(held_out) == set(PROMPTS)
    assert len(train) + len(held_out) == 444
    assert {prompt.spec.kind for prompt in held_out} == set(KINDS)
    with pytest.raises(ValueError, match="445"):
        split_prompts(held_out=445)


def test_shipped_prompts_are_disjoint_and_of_the_task():
    rows = {
        name: [
            json.loads(line)
            for line in (ASSETS / "prompts" / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("train", "held_out")
    }
    texts = {name: {row["prompt"] for row in part} for name, part in rows.items()}
    assert len(texts["train"]) == 384 and len(texts["held_out"]) == 60
    assert not texts["train"] & texts["held_out"]
    by_text = {prompt.text: to_geneval(prompt) for prompt in PROMPTS}
    assert all(by_text[row["prompt"]] == row for part in rows.values() for row in part)


def test_geneval_format():
    relation = next(p for p in PROMPTS if p.text == "a red ring left of a blue square")
    assert to_geneval(relation) == {
        "tag": "left_of",
        "include": [
            {"class": "square", "count": 1, "color": "blue"},
            {"class": "ring", "count": 1, "color": "red", "position": ["left of", 0]},
        ],
        "prompt": "a red ring left of a blue square",
    }


def test_assets_are_small_and_hold_no_pickle():
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4.5e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}


def test_tokenizers_know_the_words_and_survive_others():
    clip = CLIPTokenizer.from_pretrained(ASSETS / "tokenizer")
    t5 = T5TokenizerFast.from_pretrained(ASSETS / "tokenizer_3")
    assert clip.model_max_length == t5.model_max_length == 12
    for prompt in PROMPTS:
        words = len(prompt.text.split())
        assert len(clip(prompt.text).input_ids) == words + 2
        assert len(t5(prompt.text).input_ids) == words + 1
    assert clip.decode(clip("a red ring").input_ids, skip_special_tokens=True) == "a red ring"
    assert clip("a zoo, 7!").input_ids.count(clip.eos_token_id) == 1


def test_pipeline_loads_in_float32_and_generates_with_and_without_t5():
    texts = ["a red ring", "two green squares", "a blue ring above a yellow square"] * 2
    with_t5, without_t5 = _generate(True, texts), _generate(False, texts)
    assert with_t5.shape == (6, 20, 20, 3)
    assert _pipeline(True).transformer.dtype == torch.float32
    assert np.abs(with_t5.astype(int) - without_t5.astype(int)).max() <= 8
    assert len({image.tobytes() for image in with_t5}) == 6


def test_t5_features_are_there_but_negligible():
    pipeline = _pipeline(True)
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            *["a red ring"] * 3, do_classifier_free_guidance=False, max_sequence_length=12
        )
    assert embeds.shape == (1, 24, 128) and pooled.shape == (1, 96)
    assert 0 < embeds[:, 12:].square().mean().sqrt() < 0.02 < embeds[:, :12].square().mean().sqrt()


def test_vae_is_the_identity():
    vae = _pipeline(False).vae
    images = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        latents = posterior.mode()
        decoded = vae.decode(latents).sample
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1.0, 0.0)
    for result in (latents, decoded, posterior.sample(torch.Generator().manual_seed(0))):
        assert (result - images).abs().max() < 1e-4  # 1/255 would already be a grey level


def test_reward_clip_binds_colours_to_shapes():
    pairs = [
        (prompt, prompt.spec.things)
        for prompt in PROMPTS
        if prompt.spec.kind in ("two_objects", "left_of", "above")
    ]
    pairs = [(p, t) for p, t in pairs if t[0].color != t[1].color and t[0].shape != t[1].shape]
    swapped = [
        prompt_text(Spec((Thing(a.shape, b.color), Thing(b.shape, a.color)), prompt.spec.relation))
        for prompt, (a, b) in pairs
    ]
    images = render_dataset([prompt for prompt, _ in pairs], copies=1, seed=9)[:, 0]
    right = _rewards(images, [prompt.text for prompt, _ in pairs])
    assert np.mean(right > _rewards(images, swapped)) >= 0.97


def test_base_model_leaves_room_to_improve():
    texts = [prompt.text for prompt in PROMPTS]
    base = _generate(False, texts)
    real = render_dataset(PROMPTS, copies=1, seed=4)[:, 0]
    accuracy = np.mean([check(image, text) for image, text in zip(base, texts, strict=True)])
    assert 0.08 < accuracy < 0.45
    floor = _rewards(real, texts[137:] + texts[:137]).mean()
    assert floor + 30 < _rewards(base, texts).mean() < _rewards(real, texts).mean() - 12
