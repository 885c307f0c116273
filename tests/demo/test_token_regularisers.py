"""The sweep of regularisers on tokens: its runs, its prompts, and the rules that compare them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from adrpo_scale.demo.text import rm_task
from benchmarks.cells import interval
from benchmarks.token_cells import (
    PROMPTS,
    SEEDS,
    SETTINGS,
    Cell,
    Setting,
    cells,
    first_round,
    prompts_of,
    second_round,
)
from benchmarks.token_figure import draw
from benchmarks.token_regularisers import config_of
from benchmarks.token_tables import chosen, differences, on_front, report, runs_of


def of(texts):
    prompts = [rm_task.parse_prompt(text) for text in texts]
    return {(prompt.thing, frozenset(prompt.aspects)) for prompt in prompts}


def test_prompts_of_choice_report_and_training_share_no_thing_with_a_set_of_aspects():
    choose, second = prompts_of("choose"), prompts_of("second")
    assert len(set(choose)) == len(set(second)) == PROMPTS >= 256
    assert prompts_of("report") == second
    train, _ = rm_task.split_prompts()
    parts = [of(choose), of(second), of(prompt.text for prompt in train)]
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_every_run_has_a_name_and_seeds_of_its_own_in_choice_and_report():
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    assert not set(SEEDS["choose"]) & set(SEEDS["report"])
    assert all(len(seeds) == 5 for seeds in SEEDS.values())


def test_only_chosen_settings_and_the_front_are_reported():
    main, why = first_round(is_why=False), first_round(is_why=True)
    assert {c.setting.estimator for c in main if c.setting} == {"k3"}
    assert {c.setting.estimator for c in why if c.setting} == {"k2", "exact"}
    assert all(c.setting.is_constant for c in main if c.setting and c.stage != "choose")
    picked = [s for s in SETTINGS if s.name in ("tanh-opposite-k3-0.4", "constant-k3-0.4")]
    found = second_round(picked)
    assert len(found) == 2 * 2 * 5 and {c.stage for c in found} == {"report", "second"}
    there = [c.name for c in main]
    assert sum(c.name not in there for c in found) == 2 * 5


def test_runs_state_what_their_names_say(tmp_path):
    steered = next(s for s in SETTINGS if s.target is not None and s.shape == "tanh")
    config = config_of(Cell("second", steered, 7), tmp_path)
    assert (config.algorithm.name, config.algorithm.advantage_clip, config.seed) == ("adrpo", 1, 7)
    assert (config.regulariser.shape, config.regulariser.sign) == ("tanh", "opposite")
    assert config.regulariser.controller.target == steered.target
    assert config.rewards[0].model == str(tmp_path / "reward_model_2")
    assert [reward.use for reward in config.rewards] == ["training", "evaluation", "evaluation"]
    constant = Setting("constant", "", 0.8, "exact")
    config = config_of(Cell("choose", constant, 0), tmp_path)
    assert (config.algorithm.name, config.algorithm.beta0) == ("grpo", 0.8)
    assert config.algorithm.kl_estimator == "exact"
    assert config.rewards[0].model == "demo:text_rm/reward_model"


def test_the_front_is_straight_in_log_kl_and_ends_at_its_points():
    points = [(1.0, 0.0), (0.01, 2.0), (0.1, 1.0)]
    assert on_front(points, 0.1) == pytest.approx(1.0)
    assert on_front(points, math.sqrt(0.1)) == pytest.approx(0.5)
    assert on_front(points, 0.009) is None and on_front(points, 1.01) is None


def test_an_interval_is_student_s():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == pytest.approx((3.0, 2.776 * math.sqrt(2.5) / math.sqrt(5)))


def document(cell: Cell) -> dict:
    """Constants lie on reward = log10 KL, which falls with beta0; opposite tanh .5 above it, and of
    the highest gold at .4."""
    setting = cell.setting
    kl = 0.1 / setting.beta0 * (1 + 0.01 * cell.seed)
    above = 0.5 if setting.shape == "tanh" and setting.sign == "opposite" else 0.0
    values = {"reward": math.log10(kl) + above, "other": 0.0, "kl": kl, "entropy": 1.0}
    values["gold"] = -abs(setting.beta0 - 0.4) + above / 10
    named = {"stage": cell.stage, "seed": cell.seed, "name": cell.name}
    return {"cell": named, "measured": {"100": values, "110": values}}


def test_settings_are_chosen_by_gold_and_compared_at_equal_divergence(tmp_path: Path):
    runs = runs_of(document(cell) for cell in cells() if cell.setting is not None)
    found = chosen(runs)
    assert found["tanh-opposite-k3"].beta0 == found["constant-k3"].beta0 == 0.4
    steered = found.pop("constant-controller-k3"), found.pop("tanh-opposite-controller-k3")
    assert all(setting.target is not None for setting in steered)
    gains = differences(runs, "second", found["tanh-opposite-k3"], "reward")
    assert gains == pytest.approx([0.5] * 5)
    assert differences(runs, "second", found["clip-paper-k3"], "reward") == pytest.approx([0] * 5)
    text = report(runs)
    assert "| tanh, opposite; beta0 0.4 |" in text and "**+0.500 ± 0.000**" in text
    draw(runs, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
