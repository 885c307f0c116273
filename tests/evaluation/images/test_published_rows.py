"""Pipelines that nobody trained here, and one with a LoRA, are rows of a table."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import FluxPipeline

from adrpo_scale.evaluation.evaluate import evaluate
from adrpo_scale.evaluation.file import load_evaluation
from adrpo_scale.evaluation.report.evaluated import read_run
from tests.support.judging import CLIP, evaluation_file
from tests.support.tiny_pipelines import SIZES

pytestmark = pytest.mark.slow
ROWS = [*SIZES, "flux_lora"]


@pytest.fixture(scope="module")
def judged(pipelines, tmp_path_factory):
    """The folder of an evaluation: six pictures of each row."""
    place = tmp_path_factory.mktemp("published")
    layer = "transformer_blocks.0.attn.to_q"
    ones = {
        f"{layer}.lora_A.weight": torch.ones(1, 32),
        f"{layer}.lora_B.weight": torch.ones(32, 1),
    }
    FluxPipeline.save_lora_weights(place / "lora", transformer_lora_layers=ones)
    models = "".join(
        f'[models.{kind}]\npipeline = "{pipelines[kind]}"\nsteps = 2\nsize = {SIZES[kind]}\n'
        for kind in SIZES
    )
    models += models[: models.index("[", 1)].replace("models.flux", "models.flux_lora")
    models += f'lora = "{place / "lora"}"\n'
    path = evaluation_file(place, models, CLIP, per_prompt=2, seeds=[0])
    evaluate(load_evaluation(path), place / "to")
    return place / "to"


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_each_pipeline_is_a_row_with_its_settings_and_scores(judged):
    assert sorted(path.name for path in (judged / "rows").iterdir()) == sorted(ROWS)
    for name in ROWS:
        folder = judged / "rows" / name
        identity = json.loads((folder / "evaluation.json").read_text())
        model = identity["model"]
        kind = name.removesuffix("_lora")
        assert identity["published"] and identity["seed"] is None
        assert (model["steps"], model["height"], model["dtype"]) == (2, SIZES[kind], "float32")
        assert (model["lora"] is None) == (name == kind)
        numbers = {line["metric"]: line["n"] for line in lines(folder / "eval.jsonl")}
        assert numbers == {"clip": 6, "clip_diversity_l2": 3}
        assert len(list((folder / "images").iterdir())) == 6
        assert read_run(folder).rows


def test_a_lora_changes_every_picture(judged):
    told = [
        [
            json.loads(line)["sha256"]
            for line in (folder / "manifest.jsonl").read_text().splitlines()
        ]
        for folder in (judged / "rows" / "flux", judged / "rows" / "flux_lora")
    ]
    assert len(set(told[0] + told[1])) == 12
