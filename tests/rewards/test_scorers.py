"""Published scorers on small random weights in their authors' layout, through the conversion,
against their formulas written out."""

from __future__ import annotations

import json

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity, linear, normalize
from torchvision.transforms import functional as vision
from transformers import BlipConfig, BlipForImageTextRetrieval

from adrpo_scale.core.types import Prompt
from tests.support.blip_by_hand import picture_states, prompt_states, random_weights
from tests.support.tiny_scorers import (
    IMAGES,
    PROMPTS,
    TEXTS,
    head_weights,
    image_reward_weights,
    save_bert,
    save_clip,
    scorer,
    write_hps,
)

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty hub cache, to which pickles are converted."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def close(found, expected, tolerance=1e-5):
    assert found.dtype == torch.float32 and expected.std() > 100 * tolerance
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=tolerance * scale)


def cropped(side):
    """CLIP's preprocessing by torchvision, on PIL pictures: float32 [N, 3, side, side]."""
    found = []
    for image in map(Image.fromarray, IMAGES):
        image = vision.resize(image, side, vision.InterpolationMode.BICUBIC)
        image = vision.to_tensor(vision.center_crop(image, [side, side]))
        found.append(vision.normalize(image, MEAN, STD))
    return torch.stack(found)


def predicted(weights, x, prefix="layers."):
    for place in (0, 2, 4, 6, 7):
        x = linear(x, weights[f"{prefix}{place}.weight"], weights[f"{prefix}{place}.bias"])
    return x[:, 0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, *save_clip(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    return folder, save_bert(folder)


# ---- CLIP ------------------------------------------------------------------------------------


@torch.no_grad()
def clip_embeddings(model, tokenizer):
    pictures = model.visual_projection(model.vision_model(cropped(32)).pooler_output)
    read = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")
    texts = model.text_projection(model.text_model(**read).pooler_output)
    return pictures, texts


def test_pick_score_is_the_scaled_cosine(clip):
    folder, model, tokenizer = clip
    expected = model.logit_scale.detach().exp() * cosine_similarity(
        *clip_embeddings(model, tokenizer)
    )
    reward = scorer("pick_score", model=str(folder), tokenizer=str(folder), batch=2)
    found = reward(IMAGES, PROMPTS)
    close(found, expected)
    torch.testing.assert_close(reward(IMAGES[3:4], PROMPTS[3:4]), found[3:4])
    (reading,) = reward.reads([*PROMPTS, Prompt(9, "a red ring and " * 9)]).encoders
    assert reading.limit == 12 and list(reading.cut) == [9]


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_aesthetic_is_linear_layers_of_the_normalised_embedding(clip, tmp_path, form):
    folder, model, tokenizer = clip
    weights = head_weights(24)
    expected = predicted(weights, normalize(clip_embeddings(model, tokenizer)[0], dim=1))
    if form == "pth":
        torch.save(weights, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    else:
        save_file(weights, tmp_path / "model.safetensors")
    reward = scorer("aesthetic", model=str(tmp_path), clip=str(folder), batch=2)
    close(reward(IMAGES, PROMPTS), expected)
    assert reward.reads(PROMPTS) is None


# ---- BLIP ------------------------------------------------------------------------------------


def read_by(tokenizer):
    found = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt"
    )
    return found["input_ids"], found["attention_mask"]


def test_image_reward_is_the_head_of_the_prompt_that_sees_the_picture(bert, tmp_path):
    folder, tokenizer = bert
    blip, head, whole = image_reward_weights()
    ids, mask = read_by(tokenizer)
    assert ids[:, 0].eq(2).all()  # [CLS]
    states = prompt_states(blip, ids, mask, picture_states(blip, cropped(32)))
    expected = (predicted(head, states[:, 0]) - 0.16717362830052426) / 1.0333394966054072
    torch.save(whole, tmp_path / "ImageReward.pt")
    reward = scorer("image_reward", model=str(tmp_path), tokenizer=str(folder), batch=2)
    found = reward(IMAGES, PROMPTS)
    close(found, expected)
    assert found[0] != found[2]  # one prompt, two pictures
    others = [Prompt(0, TEXTS[1])] * 5
    assert not torch.allclose(reward(IMAGES, others), found, atol=1e-3)
    (reading,) = reward.reads([Prompt(9, "ring " * 40)]).encoders
    assert (reading.limit, dict(reading.cut)) == (35, {9: 42})


def blip_cosine(blip, tokenizer):
    pictures = picture_states(blip, cropped(32))[:, 0]
    texts = prompt_states(blip, *read_by(tokenizer))[:, 0]
    return cosine_similarity(
        *(
            linear(x, blip[f"{name}_proj.weight"], blip[f"{name}_proj.bias"])
            for name, x in (("vision", pictures), ("text", texts))
        )
    )


def test_blip_score_is_the_cosine_of_its_own_layout(bert, tmp_path):
    folder, tokenizer = bert
    blip = random_weights()
    beside = {name.replace("encoder", "encoder_m"): t for name, t in blip.items() if "enc" in name}
    beside |= {"image_queue": torch.ones(16, 9), "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    beside |= {"temp": torch.tensor(0.07), "vision_proj_m.weight": torch.ones(16, 64)}
    torch.save({"model": blip | beside, "epoch": 3}, tmp_path / "model_large.pth")
    reward = scorer("blip_score", model=str(tmp_path), tokenizer=str(folder), batch=2)
    close(reward(IMAGES, PROMPTS), blip_cosine(blip, tokenizer))


def test_blip_score_of_a_folder_of_transformers_is_the_same(bert, tmp_path):
    """Its config states neither the right eps nor layers that see pictures."""
    from adrpo_scale.rewards.scorers.blip_model import blip_name, sizes_of

    folder, tokenizer = bert
    blip = random_weights()
    named = {blip_name(name, heads=True): tensor for name, tensor in blip.items()}
    sizes = sizes_of({name: tuple(tensor.shape) for name, tensor in named.items()}, tmp_path)
    model = BlipForImageTextRetrieval(BlipConfig(**sizes)).eval()
    model.load_state_dict(named)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vision_config"]["layer_norm_eps"] == 1e-5
    reward = scorer("blip_score", model=str(tmp_path), tokenizer=str(folder))
    close(reward(IMAGES, PROMPTS), blip_cosine(blip, tokenizer))


# ---- HPS -------------------------------------------------------------------------------------


def padded(side):
    """HPSv2's preprocessing by torchvision, on tensors."""
    found = []
    for image in IMAGES:
        image = vision.to_tensor(Image.fromarray(image))
        scale = side / max(image.shape[1:])
        size = [round(each * scale) for each in image.shape[1:]]
        image = vision.resize(image, size, vision.InterpolationMode.BICUBIC)
        high, wide = (side - each for each in size)
        around = [wide // 2, high // 2, wide - wide // 2, high - high // 2]
        found.append(vision.normalize(vision.pad(image, around), MEAN, STD))
    return torch.stack(found)


def test_hpsv2_is_a_hundred_times_the_cosine_of_the_whole_picture(tmp_path):
    model = write_hps(tmp_path)
    with torch.no_grad():
        features = model.encode_image(padded(28)), model.encode_text(open_clip.tokenize(TEXTS))
    reward = scorer("hpsv2", model=str(tmp_path), batch=2)
    close(reward(IMAGES, PROMPTS), 100 * cosine_similarity(*features))
    (reading,) = reward.reads([Prompt(9, "ring " * 90)]).encoders
    assert (reading.limit, dict(reading.cut)) == (77, {9: 92})
