"""Rows of `eval_prompts.jsonl`: the numbers of an evaluation prompt by prompt."""

from __future__ import annotations

import json
import statistics

import pytest
import torch

from adrpo_scale.core.run_rows import PROMPTS, prompt_rows
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of
from adrpo_scale.run.folder import cut_back, left_behind
from adrpo_scale.training.prompt_values import prompt_row

TWO = [Prompt(0, "a ring"), Prompt(1, "a square")]


def row(**values):
    return prompt_row(8, "held_out", "ema", TWO, {n: torch.tensor(v) for n, v in values.items()})


def test_each_prompt_has_its_mean_spread_and_number_of_samples():
    found = row(reward=[[1.0, 2.0, 4.0], [5.0, 5.0, 5.0]], pixel_diversity=[0.25, 0.5])
    assert found["prompts"] == [key_of(prompt) for prompt in TWO]
    assert (found["iteration"], found["split"], found["weights"]) == (8, "held_out", "ema")
    assert found["metrics"] == {
        "reward": {
            "mean": [2.333333, 5.0],
            "n": [3, 3],
            "std": [float(f"{statistics.stdev([1, 2, 4]):.7g}"), 0.0],
        },
        "pixel_diversity": {"mean": [0.25, 0.5], "n": [1, 1]},
    }


def test_categories_of_published_sets_are_kept():
    prompts = [
        Prompt(0, "a car", {"category": "Colors", "tag": "other"}),
        Prompt(1, "a bench", {"tag": "single_object"}),
        Prompt(2, "a fox", {"category": 3}),
    ]
    found = prompt_row(8, "held_out", "raw", prompts, {})
    assert found["categories"] == ["Colors", "single_object", None]
    assert "categories" not in row(reward=[1.0, 2.0])


def test_what_was_not_measured_is_left_out_of_a_prompts_mean():
    nan = float("nan")
    found = row(reward=[[1.0, nan, 3.0], [nan, nan, nan]])["metrics"]["reward"]
    assert found == {"mean": [2.0, None], "n": [2, 0], "std": [float(f"{2**0.5:.7g}"), None]}
    assert row(reward=[[1.0, nan], [2.0, 3.0]])["metrics"]["reward"]["std"][0] is None
    json.dumps(row(reward=[[nan], [nan]]), allow_nan=False)


def test_samples_in_one_list_are_those_of_each_prompt_in_turn():
    assert row(kl=[1.0, 3.0, 5.0, 7.0])["metrics"]["kl"]["mean"] == [2.0, 6.0]
    assert row(kl=[1.0, 3.0, 5.0])["metrics"] == {}  # not every prompt has its values
    assert row(kl=[])["metrics"] == {}


def test_rows_are_read_back_and_damaged_ones_are_left_out(tmp_path):
    good = row(reward=[[1.0, 2.0], [3.0, 4.0]])
    mean = good["metrics"]["reward"]["mean"]
    bad = [
        {**good, "weights": "other"},
        {**good, "prompts": ["a"]},
        {**good, "metrics": {"reward": {"mean": [*mean, 1.0]}}},
        {**good, "metrics": {"reward": {"mean": ["a", "b"]}}},
        {**good, "metrics": {"reward": {"mean": mean, "std": [None]}}},
        {**good, "metrics": {"reward": [1.0, 2.0]}},
        {**good, "iteration": "8"},
    ]
    path = tmp_path / PROMPTS
    path.write_text("".join(json.dumps(line) + "\n" for line in [*bad, good, {"x": 1}]))
    assert prompt_rows(path) == [good]
    assert prompt_rows(tmp_path / "nowhere.jsonl") == []


def test_a_resume_cuts_the_rows_back_with_those_of_the_means(tmp_path):
    rows = [row(reward=[[1.0], [2.0]]) | {"iteration": k} for k in (0, 4, 8)]
    path = tmp_path / PROMPTS
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    cut_back(tmp_path, 6, 4)
    assert prompt_rows(path) == rows[:2]
    path.unlink()
    path.mkdir()
    with pytest.raises(Exception, match=f"{PROMPTS} cannot be read"):
        left_behind(tmp_path, 2)
