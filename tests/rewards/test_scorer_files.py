"""Scorers' files, precision, memory and processes, and a run that is judged by one."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from adrpo_scale.cluster.plan.hardware import GPUS
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.plan.rehearsal import frozen_bytes, frozen_cost
from adrpo_scale.cluster.plan.workload import not_counted, workload_of
from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.apart import apart
from adrpo_scale.rewards.calls import rewards_of
from adrpo_scale.rewards.scorers.base import PRECISIONS
from adrpo_scale.run.registry import REWARDS
from tests.support.plans import config_of, hardware
from tests.support.tiny import demo_config, demo_trainer, records
from tests.support.tiny_scorers import (
    CPU,
    IMAGES,
    PROMPTS,
    image_reward_weights,
    save_bert,
    save_clip,
    scorer,
    write_hps,
)

PAPER = "configs/sd3/adrpo.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """ImageReward, BERT's tokenizer, a CLIP and an HPSv2, each in a folder of its own."""
    root = tmp_path_factory.mktemp("scorers")
    for name in ("reward", "bert", "clip", "hps"):
        (root / name).mkdir()
    save_file(image_reward_weights()[2], root / "reward" / "ImageReward.safetensors")
    save_bert(root / "bert")
    save_clip(root / "clip")
    write_hps(root / "hps")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, request):
    """An empty hub cache, but for the test that reads published weights."""
    if "public" not in request.node.name:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def image_reward(folder, **settings):
    places = {"model": str(folder / "reward"), "tokenizer": str(folder / "bert")}
    return scorer("image_reward", **{**places, **settings})


# ---- the published weights -------------------------------------------------------------------

PICTURES = os.environ.get("IMAGE_REWARD_PICTURES", "")
OCEAN = "a painting of an ocean with clouds and birds, day time, low depth field effect"


@pytest.mark.skipif(not PICTURES, reason="IMAGE_REWARD_PICTURES names no folder with 1.webp to 4")
def test_image_reward_gives_its_public_values():
    """Of `THUDM/ImageReward`, prefetched, on the four pictures of its repository."""
    files = [next(Path(PICTURES).glob(f"{number}.*")) for number in (1, 2, 3, 4)]
    images = [np.array(Image.open(file).convert("RGB")) for file in files]
    found = scorer("image_reward")(images, [Prompt(0, OCEAN)] * 4)
    expected = torch.tensor([0.5812, 0.2745, -1.4132, -2.0296])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # PIL's decoders differ


# ---- precision and processes -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_moves_scores_by_its_rounding(folder, dtype):
    """Two layers of sums: some ten roundings of values around 1."""
    clip = {"model": str(folder / "clip"), "tokenizer": str(folder / "clip")}
    step = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    for kind, settings in (
        ("image_reward", {"model": str(folder / "reward"), "tokenizer": str(folder / "bert")}),
        ("pick_score", clip),
        ("hpsv2", {"model": str(folder / "hps")}),
    ):
        whole = scorer(kind, **settings)(IMAGES, PROMPTS)
        half = scorer(kind, dtype=dtype, **settings)(IMAGES, PROMPTS)
        size = whole.abs().max().clamp(min=20 if kind != "image_reward" else 1)
        assert half.dtype == torch.float32 and half.isfinite().all()
        assert 0 < (half - whole).abs().max() < 30 * step * size, kind


def test_a_clip_reward_has_a_precision_too():
    whole, half = (
        scorer("clip", model="demo:image/reward_clip", dtype=dtype)(IMAGES, PROMPTS)
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32 and 0 < (half - whole).abs().max() < 3


@pytest.mark.slow
def test_a_scorer_in_a_process_of_its_own_gives_the_same(folder):
    kind = REWARDS["image_reward"]
    settings = {"model": str(folder / "reward"), "tokenizer": str(folder / "bert")}
    config = kind.Config(kind="image_reward", time_limit=120.0, **settings)
    found = rewards_of(apart(kind, config, CPU), IMAGES, PROMPTS)
    expected = image_reward(folder)(IMAGES, PROMPTS).double()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # its threads may be fewer


# ---- files -----------------------------------------------------------------------------------


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm",)


def test_a_pickle_that_would_run_code_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("a", {"harm": Harmful()}), ("b", {"model": {"harm": Harmful()}})):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "ImageReward.pt")
        with pytest.raises(WeightsError, match=r"is refused \(GLOBAL posix\.system\)"):
            image_reward(folder, model=str(tmp_path / name))
    assert not Path("harm").exists()


def without(name):
    whole = image_reward_weights()[2]
    del whole[name]
    return whole


def changed(name, change):
    whole = image_reward_weights()[2]
    return whole | {name: change(whole[name])}


PROJ = "blip.visual_encoder.blocks.1.attn.proj.weight"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: without(PROJ), r"1 missing \['vision_model.encoder.layers.1.self_attn.projection"),
        (lambda: without("mlp.layers.7.bias"), r"1 missing \['layers.7.bias'\]"),
        (lambda: image_reward_weights()[2] | {"blip.more": torch.ones(1)}, r"1 unknown \['more'\]"),
        (lambda: changed(PROJ, lambda t: t[:8]), r"has the shape \[8, 64\], the model \[64, 64\]"),
        (lambda: changed(PROJ, lambda t: t * torch.nan), r"self_attn.projection.weight holds NaN"),
        (lambda: {"w": torch.ones(2)}, r"is missing: this is no BLIP"),
    ],
)
def test_weights_of_another_model_are_named(folder, tmp_path, weights, message):
    save_file(weights(), tmp_path / "ImageReward.safetensors")
    with pytest.raises(WeightsError, match=message):
        image_reward(folder, model=str(tmp_path))


def test_a_folder_without_the_weights_is_named(folder, tmp_path):
    with pytest.raises(
        ModelNotFoundError, match=r"no ImageReward or model \(.+, and no safetensors"
    ):
        image_reward(folder, model=str(tmp_path))
    for name in ("a", "b"):
        save_file({"w": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelNotFoundError, match="and 2 safetensors files of other names"):
        image_reward(folder, model=str(tmp_path))


# ---- plan ------------------------------------------------------------------------------------

PARAMETERS = {  # as published, or counted from the files' bytes
    "aesthetic": 427_616_513,
    "blip_score": 446_128_642,
    "image_reward": 445_278_720,
    "pick_score": 986_109_441,
    "hpsv2": 986_109_441,
}


LONG = ("aesthetic", "blip_score", "image_reward", "pick_score")  # two seconds each
KINDS = [pytest.param(k, marks=[pytest.mark.slow] * (k in LONG)) for k in PARAMETERS]


@pytest.mark.parametrize("kind", KINDS)
def test_plan_counts_published_scorers_without_their_files(kind):
    config = config_of(PAPER, f'rewards=[{{kind="{kind}", dtype="bfloat16"}}]')
    work = workload_of(config)
    (model,) = (each for each in work.frozen if each.phase == "reward")
    assert model.name == f"reward {kind}" and model.rows == 32 and not not_counted(config, work)
    held = frozen_bytes(config, model)
    assert abs(held - 2 * PARAMETERS[kind]) < 100_000  # buffers
    assert frozen_cost(config, model, 4).at(4).flops > 4 * 50e9


def test_plan_knows_the_rate_of_every_precision():
    assert all(PRECISIONS.keys() <= gpu.flops.keys() for gpu in GPUS.values())


@pytest.mark.slow
def test_a_whole_plan_has_scorers_in_every_precision_and_use(folder):
    places = f'kind="image_reward", model="{folder / "reward"}", tokenizer="{folder / "bert"}"'

    def planned(use):
        sections = [
            f'{{{places}, dtype="{dtype}", name="{dtype}", use="{use if place else "training"}"}}'
            for place, dtype in enumerate(PRECISIONS)
        ]
        settings = [f"rewards=[{', '.join(sections)}]", "evaluation.every=10"]
        return plan_of(demo_config("adrpo", settings), hardware())

    plan, judged = planned("training"), planned("evaluation")
    # A scorer that evaluations alone ask costs no time in rollouts, and the same in evaluations.
    seconds = [{time.phase: time.compute for time in each.times} for each in (plan, judged)]
    assert seconds[1]["reward"] == pytest.approx(seconds[0]["reward"] / 3, rel=0.2)
    assert seconds[1]["evaluation"] == seconds[0]["evaluation"]
    items = {item.name: item.bytes for item in plan.items}
    whole, *halves = (items[f"reward {dtype}: whole"] for dtype in PRECISIONS)
    assert halves[0] == halves[1] and 0.45 < halves[0] / whole < 0.6  # ids of positions are whole


def test_plan_counts_small_scorers_from_their_files(folder):
    places = {
        "image_reward": {"model": str(folder / "reward"), "tokenizer": str(folder / "bert")},
        "hpsv2": {"model": str(folder / "hps")},
    }
    for kind, place in places.items():
        settings = "".join(f', {key}="{value}"' for key, value in place.items())
        config = config_of(PAPER, f'rewards=[{{kind="{kind}"{settings}, batch=8}}]')
        (model,) = (each for each in workload_of(config).frozen if each.phase == "reward")
        held, reward = frozen_bytes(config, model), scorer(kind, **place)
        real = reward._blip if kind == "image_reward" else reward._model
        assert 0 <= held - sum(p.nbytes for p in real.parameters()) < 50_000  # buffers
        assert frozen_cost(config, model, 4).at(4).flops > 0


# ---- a run -----------------------------------------------------------------------------------


def test_a_run_is_judged_by_a_scorer_that_it_does_not_train_on(folder, tmp_path):
    section = {"kind": "image_reward", "use": "evaluation", "batch": 2}
    section |= {"model": str(folder / "reward"), "tokenizer": str(folder / "bert")}
    clip = {"kind": "clip", "model": "demo:image/reward_clip"}
    toml = ", ".join(
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in each.items()) + "}"
        for each in (clip, section)
    )
    config = demo_config("adrpo", [f"rewards=[{toml}]", "evaluation.every=1"])
    demo_trainer(tmp_path / "run", config).train()
    rows = records(tmp_path / "run", "eval.jsonl")
    found = [row for row in rows if row["metric"] == "image_reward"]
    assert [(row["iteration"], row["split"], row["n"]) for row in found] == [
        (iteration, split, 6) for iteration in (0, 1) for split in ("train", "held_out")
    ]
    assert all(math.isfinite(row["value"]) for row in found)
    (row,) = records(tmp_path / "run")
    assert not [name for name in row if "image_reward" in name]  # no rollout was scored by it
