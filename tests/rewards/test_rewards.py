"""Rewards: CLIP from both libraries' weights, functions, and what a bad answer comes to."""

from __future__ import annotations

import json
import logging

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPProcessor

from adrpo_scale.core.errors import ConfigError, GroupError, ModelNotFoundError, RewardError
from adrpo_scale.core.types import Prompt, Rows
from adrpo_scale.hub.weights import find_model
from adrpo_scale.rewards.calls import checked, rewards_of
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig
from adrpo_scale.rewards.image import ClipReward, ClipRewardConfig
from adrpo_scale.training.rollout import gather_rewards

CPU = torch.device("cpu")
CLIP = "demo:image/reward_clip"
TEXTS = ["a red ring", "two green triangles", "a red ring", "a blue square left of a red ring", "x"]
PROMPTS = [Prompt(i, text) for i, text in enumerate(TEXTS)]
IMAGES = list(np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8))


def clip(**settings):
    return ClipReward(ClipRewardConfig(**settings), CPU)


# ---- CLIP ------------------------------------------------------------------------------------


def test_clip_score_is_a_hundred_times_the_cosine():
    model = CLIPModel.from_pretrained(find_model(CLIP)).eval()
    processor = CLIPProcessor.from_pretrained(find_model(CLIP))
    inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt", padding=True)
    with torch.no_grad():
        output = model(**inputs)
    expected = 100 * cosine_similarity(output.image_embeds, output.text_embeds)

    reward = clip(model=CLIP, batch=2)
    found = reward(IMAGES, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert found.std() > 0.1 and found.abs().max() <= 100
    torch.testing.assert_close(reward(IMAGES[3:4], PROMPTS[3:4]), found[3:4], rtol=1e-4, atol=1e-4)
    embeddings = reward.embed(IMAGES)
    assert embeddings.shape == output.image_embeds.shape
    cosines = cosine_similarity(embeddings, output.image_embeds)
    torch.testing.assert_close(cosines, torch.ones(5), rtol=0, atol=1e-5)
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(5), atol=0.05)  # as they are


def test_prompts_longer_than_the_encoder_are_cut():
    long = Prompt(0, "a red ring and " * 60)
    assert clip(model=CLIP)(IMAGES[:1], [long]).isfinite().all()


def write_open_clip(folder):
    """A small model as open_clip writes it, and the model."""
    settings = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 20, "layers": 1, "width": 32, "head_width": 16}
        | {"patch_size": 5},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2}
        | {"layers": 1},
    }
    preprocess = {"size": [20, 20], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
    torch.manual_seed(0)
    model = open_clip.CLIP(**settings).eval()
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": settings, "preprocess_cfg": preprocess})
    )
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model


def test_clip_score_from_open_clip_weights(tmp_path):
    model = write_open_clip(tmp_path)
    pixels = torch.from_numpy(np.stack(IMAGES))
    pixels = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.no_grad():
        features = model.encode_image(pixels), model.encode_text(open_clip.tokenize(TEXTS))
    found = clip(model=f"local-dir:{tmp_path}", backend="open_clip", batch=2)(IMAGES, PROMPTS)
    torch.testing.assert_close(found, 100 * cosine_similarity(*features), rtol=1e-4, atol=1e-3)
    assert found.std() > 0.1


def test_clip_models_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="is not there"):
        clip(model=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no such demo asset"):
        clip(model="demo:image/reward_clap")
    for name in (f"local-dir:{tmp_path / 'nowhere'}", "ViT-Nothing"):
        with pytest.raises(ModelNotFoundError, match="open_clip cannot load"):
            clip(model=name, backend="open_clip")


# ---- functions -------------------------------------------------------------------------------


def as_list(artifacts, prompts):
    return [
        float(image.mean()) + prompt.id for image, prompt in zip(artifacts, prompts, strict=True)
    ]


def as_array(artifacts, prompts):
    return np.array(as_list(artifacts, prompts))


def as_half_precision(artifacts, prompts):
    return torch.tensor(as_list(artifacts, prompts), dtype=torch.bfloat16, requires_grad=True)


def as_column(artifacts, prompts):
    return torch.zeros(len(artifacts), 1)


def as_one_number(artifacts, prompts):
    return 0.5


def as_words(artifacts, prompts):
    return ["good"] * len(artifacts)


def raises_on_prompt_3(artifacts, prompts):
    if any(prompt.id == 3 for prompt in prompts):
        raise ValueError("cannot read the picture")
    return as_list(artifacts, prompts)


def infinite_on_prompt_1(artifacts, prompts):
    values = as_list(artifacts, prompts)
    return [float("-inf") if p.id == 1 else v for v, p in zip(values, prompts, strict=True)]


def function(attribute, **settings):
    config = FunctionRewardConfig(path=f"tests.rewards.test_rewards:{attribute}", **settings)
    return FunctionReward(config, CPU)


@pytest.mark.parametrize("name", ["as_list", "as_array", "as_half_precision"])
def test_a_function_may_answer_with_a_list_an_array_or_a_tensor(name):
    found = rewards_of(function(name), IMAGES, PROMPTS)
    assert found.dtype == torch.float64 and not found.requires_grad
    assert found.tolist() == pytest.approx(as_list(IMAGES, PROMPTS), rel=1e-2)


@pytest.mark.parametrize(
    "path", ["no_such_module:f", "tests.rewards.test_rewards:no_such", "json", ""]
)
def test_a_function_that_cannot_be_imported_is_named(path):
    with pytest.raises(RewardError, match=f"reward mine: path = '{path}' cannot be imported"):
        FunctionReward(FunctionRewardConfig(path=path, name="mine"), CPU)


@pytest.mark.parametrize("name", ["as_column", "as_one_number"])
def test_an_answer_of_another_shape_is_refused(name):
    with pytest.raises(RewardError, match=r"gave shape .* for 5 samples"):
        checked(function(name), IMAGES, PROMPTS)
    with pytest.raises(RewardError):  # masking every sample would train on nothing, silently
        rewards_of(function(name), IMAGES, PROMPTS)


@pytest.mark.parametrize(
    ("name", "bad"), [("raises_on_prompt_3", 3), ("infinite_on_prompt_1", 1), ("as_words", None)]
)
def test_only_the_samples_that_fail_are_masked_and_their_prompts_named(name, bad, caplog):
    caplog.set_level(logging.WARNING)
    found = rewards_of(function(name, name="mine"), IMAGES, PROMPTS)
    masked = {index for index, value in enumerate(found.tolist()) if value != value}
    assert masked == ({bad} if bad is not None else set(range(5)))
    (message,) = caplog.messages  # one for the fault, however many samples it hits
    assert message.startswith("reward mine ") and message.endswith("; masked")
    for index in range(5):
        assert (f"prompt {index} {TEXTS[index]!r}" in message) == (index in masked)
    assert rewards_of(function(name), [], []).shape == (0,)


def test_a_fault_of_many_samples_names_the_first_prompts_and_counts_the_others(caplog):
    prompts = [Prompt(number // 2, f"text {number // 2}") for number in range(20)]
    rewards_of(function("as_words"), [IMAGES[0]] * 20, prompts)
    (message,) = caplog.messages
    assert "on 20 samples: prompt 0 'text 0', prompt 1 " in message
    assert message.endswith("prompt 5 'text 5' and 4 more; masked")


# ---- names, weights, groups ------------------------------------------------------------------


def test_labels_and_weights():
    plain, named = function("as_list"), function("as_list", name="mine", weight=-2.0)
    assert (plain.label, plain.weight) == ("function", 1.0)
    assert (named.label, named.weight) == ("mine", -2.0)


def scored(sample_ids, prompt_ids, rewards_NR, rewards):
    rows = Rows(torch.tensor(sample_ids), torch.tensor(prompt_ids), {})
    prompts = [Prompt(7, "seven"), Prompt(3, "three")]
    return gather_rewards(rows, torch.tensor(rewards_NR).double(), rewards, prompts, 2)


def test_rewards_are_weighted_and_masked_by_group():
    rewards = [function("as_list", name="a", weight=2.0), function("as_list", name="b")]
    nan = float("nan")
    scores = [[1.0, 10.0], [2.0, nan], [3.0, 30.0], [4.0, 40.0]]
    found = scored([3, 0, 1, 2], [3, 7, 7, 3], [scores[i] for i in (3, 0, 1, 2)], rewards)
    assert found.total_PG.tolist() == [[12.0, 0.0], [36.0, 48.0]]
    assert found.mask_PG.tolist() == [[True, False], [True, True]]
    assert found.per_reward_RPG[0].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert found.names == ["a", "b"] and found.prompt_ids_P.tolist() == [7, 3]


@pytest.mark.parametrize(
    ("sample_ids", "prompt_ids", "message"),
    [
        ([0, 1, 2], [7, 7, 3], "prompt 3 'three': samples came \\[1, 0\\] times"),
        ([0, 1, 2, 2], [7, 7, 3, 3], "prompt 3 'three': samples came \\[2, 0\\] times"),
        ([0, 1, 2, 3, 4], [7, 7, 3, 3, 3], "sample id 4 is beyond the 4 expected"),
        ([0, 1, 2, 3], [7, 3, 3, 3], "sample 1 was made for prompt 3, but belongs to prompt 7"),
    ],
)
def test_a_group_that_is_not_whole_is_named(sample_ids, prompt_ids, message):
    with pytest.raises(GroupError, match=message):
        scored(sample_ids, prompt_ids, [[1.0]] * len(sample_ids), [function("as_list")])
