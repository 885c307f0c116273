"""What `plan` and `preflight` say of a run on given pairs."""

from __future__ import annotations

import pytest

from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.preflight.cache import cache_need, check_prompts
from tests.support.given_pairs import picture_pairs, save_rows, text_pairs
from tests.support.plans import hardware


def names(plan, phase):
    return {item.name for item in plan.items if phase in item.phases}


def test_a_plan_counts_no_sampling_and_no_reward(tmp_path):
    text = plan_of(text_pairs(tmp_path, "evaluation.every=1"), hardware())
    online = plan_of(text_pairs(tmp_path, "evaluation.every=1", *ONLINE), hardware())
    assert text.seconds_of("rollout") == text.seconds_of("reward") == 0
    assert not any("sampling" in name for name in names(text, "rollout"))
    for phase in ("update", "evaluation"):  # an evaluation samples
        assert text.seconds_of(phase) == online.seconds_of(phase) > 0
        assert text.memory_of(phase) == online.memory_of(phase)


ONLINE = [
    'algorithm.rollouts="policy"',
    'rewards=[{kind="function", path="tests.support.tiny_text:many_kinds"}]',
]


@pytest.mark.slow
def test_encoding_a_picture_counts_as_decoding_one(tmp_path):
    plan = plan_of(picture_pairs(tmp_path), hardware())
    assert plan.seconds_of("rollout") > 0 == plan.seconds_of("reward")
    assert any("VAE" in name for name in names(plan, "rollout"))
    assert not any("sampling" in name for name in names(plan, "rollout"))


def test_preflight_names_rows_that_are_no_pairs(tmp_path):
    config = text_pairs(tmp_path)
    assert check_prompts(cache_need(config)).state == "fine"
    save_rows(tmp_path / "prompts.jsonl", [{"prompt": "w1", "chosen": "w2"}])
    check = check_prompts(cache_need(config))
    assert check.state == "fault"
    assert "prompts.jsonl, line 1" in check.findings[0].value
    assert "has no `rejected`" in check.findings[0].value
