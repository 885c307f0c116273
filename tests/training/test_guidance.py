"""The table of ranges: what it says of a run's first numbers, and that its constants are one."""

from __future__ import annotations

import math

import pytest

from adrpo_scale.algorithms.group_relative import GroupRelative
from adrpo_scale.core import markdown
from adrpo_scale.core.settings import walk
from adrpo_scale.run.load import load_config
from adrpo_scale.training import metric_names
from adrpo_scale.training.guidance import ENOUGH, FIRST, GUIDES, SMALL, has_risen, outside, table
from tests.support.tiny import CONFIGS

FLOW = {
    "advantage_clip_fraction": 0.4,
    "advantage_abs_mean": 0.8,
    "divergence": 1e-4,
    "grad_norm": 0.01,
    "gradient_signal": 0.1,
}
TOKENS = {**FLOW, "divergence": 0.05, "entropy": 0.4}


def run(numbers, count=FIRST, **changed):
    return [{"iteration": n + 1, **numbers, **changed} for n in range(count)]


@pytest.mark.parametrize("numbers", [FLOW, TOKENS], ids=["flow", "tokens"])
def test_a_healthy_run_has_no_line(numbers):
    assert outside(run(numbers), "adrpo") == []


@pytest.mark.parametrize(
    ("numbers", "changed", "key"),
    [
        (FLOW, {"advantage_clip_fraction": 0.97}, 'algorithm.scale = "group_std"'),
        (FLOW, {"advantage_abs_mean": 0.01}, 'algorithm.scale = "group_std"'),
        (FLOW, {"divergence": 1e-8}, "raise optimizer.learning_rate"),
        (FLOW, {"divergence": 0.05}, "lower optimizer.learning_rate"),
        (TOKENS, {"divergence": 0.5}, "raise algorithm.beta0"),
        (FLOW, {"grad_norm": 30.0}, "optimizer.max_grad_norm"),
        (FLOW, {"grad_norm": 1e-6}, "optimizer.eps"),
        (TOKENS, {"entropy": 0.001}, "algorithm.entropy_coef"),
        (TOKENS, {"entropy": 6.0}, "lower domain.rollout.temperature"),
        (FLOW, {"gradient_signal": -0.01}, "optimizer.draws_per_sample"),
        (TOKENS, {"gradient_signal": 0.01}, "prompts.group_size"),
    ],
)
def test_a_number_outside_its_range_names_the_key(numbers, changed, key):
    (line,) = outside(run(numbers, **changed), "adrpo")
    ((name, _),) = changed.items()
    assert line.startswith(f"{name} of the first {FIRST} is ") and key in line


def test_the_first_values_count_and_a_few_say_nothing():
    bad = {"advantage_abs_mean": 0.0}
    assert outside(run(FLOW, ENOUGH - 1, **bad), "grpo") == []
    assert len(outside(run(FLOW, ENOUGH, **bad), "grpo")) == 1
    assert outside([*run(FLOW), *run(FLOW, 100, **bad)], "grpo") == []
    unmeasured = {"divergence": None, "gradient_signal": math.nan, "grad_norm": "1"}
    assert outside(run(FLOW, **unmeasured), "grpo") == []
    assert outside(run(FLOW, grad_norm=10**400), "grpo") == []
    later = [*run(FLOW, 29, gradient_signal=None), *run(FLOW, ENOUGH, gradient_signal=0.0)]
    assert len(outside(later, "grpo")) == 1


def test_a_signal_that_is_gone_is_not_judged_where_the_reward_has_risen():
    rows = run(FLOW, 40, gradient_signal=0.0)
    for n, row in enumerate(rows):
        row["reward"] = 0.1 * (n % 3)
    assert len(outside(rows, "adrpo")) == 1
    risen = [row | {"reward": row["reward"] + 0.02 * n} for n, row in enumerate(rows)]
    assert outside(risen, "adrpo") == []
    assert not has_risen([0.0] * ENOUGH + [1.0] * (ENOUGH - 1))  # too few


def test_advantages_that_are_weights_are_not_judged():
    raft = run(FLOW, advantage_abs_mean=1 / 24, advantage_clip_fraction=1.0)
    assert outside(raft, "raft") == [] and len(outside(raft, "adrpo")) == 2


def test_names_and_keys_exist_and_the_limits_are_those_of_the_warnings():
    metrics = {metric.name for metric in metric_names.ITERATION}
    names = ("image_adrpo", "text_adrpo")
    configs = [load_config(CONFIGS / "demo" / f"{name}.toml").config for name in names]
    keys = {leaf.path for config in configs for leaf in walk(config)}
    for guide in GUIDES:
        assert guide.metric in metrics
        assert guide.low is not None or guide.high is not None
        words = f"{guide.below} {guide.above}".replace(",", " ").replace(";", " ").split()
        dotted = [word.strip("()") for word in words if "." in word and word[0].isalpha()]
        assert {word for word in dotted if not word.endswith(".")} <= keys
    assert GroupRelative.small_advantage == SMALL


def test_the_page_shows_the_table():
    page = (CONFIGS.parent / "docs" / "guide" / "tuning.md").read_text()
    assert markdown.table(table()) in page
