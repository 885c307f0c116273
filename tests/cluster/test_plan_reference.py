"""What `plan` counts for a reference that moves: memory, passes, traffic, checkpoints."""

from __future__ import annotations

import pytest

from adrpo_scale.cluster.plan.dealing import base_passes, load_of, needs_reference, old_passes
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.preflight.estimate import _estimated
from tests.support.plans import config_of, hardware
from tests.support.tiny import CONFIGS, FULL, demo_config

EMA = ["reference.kind=ema"]


def items(*settings):
    plan = plan_of(demo_config(overrides=settings), hardware())
    return plan, {item.name: item.bytes for item in plan.items}


@pytest.mark.parametrize("trained", [[], FULL], ids=["lora", "full"])
def test_a_moving_reference_takes_an_average_and_parameters(trained):
    still, without = items(*trained)
    moves, found = items(*trained, *EMA)
    average = found.pop("moving reference: average")
    assert 2 * average == found["policy: Adam's moments"]
    if trained:
        assert found.pop("moving reference: parameters") == found["reference"]
    else:  # a second adapter, in the parameters of the policy
        assert found.pop("policy: parameters") - without.pop("policy: parameters") == average
    assert found.keys() == without.keys()
    assert all(found[name] == without[name] for name in found if name.startswith("policy"))
    assert moves.seconds_of("update") > still.seconds_of("update")


def test_the_base_is_passed_once_for_each_row_or_always():
    often = ["optimizer.updates=2", "optimizer.minibatches=2", "optimizer.draws_per_sample=3"]
    config = demo_config(overrides=[*often, *EMA])
    load = load_of(config, hardware(4, 2))
    every = load.steps * load.micro_batches
    assert base_passes(config, load) == every / (2 * 3)
    held = demo_config(overrides=[*often, *EMA, "reference.base_coefficient=0.1"])
    assert base_passes(held, load) == every
    assert base_passes(demo_config(overrides=often), load) == 0


AWM = [*EMA, "algorithm={name='awm'}"]


@pytest.mark.parametrize(
    ("path", "settings", "draws"),
    [("demo/text_adrpo.toml", [], 1), ("demo/image_adrpo.toml", AWM, 3)],
    ids=["tokens", "awm"],
)
def test_the_old_policy_is_passed_once_for_each_row_or_for_each_of_its_draws(path, settings, draws):
    often = ["optimizer.minibatches=2", "optimizer.draws_per_sample=3", *settings]
    config = config_of(CONFIGS / path, *often, "optimizer.updates=2")
    load = load_of(config, hardware(4, 2))
    assert old_passes(config, load) == 2 * draws * load.micro_batches // 3
    once = config_of(CONFIGS / path, *settings, "optimizer.updates=1", "optimizer.minibatches=1")
    assert old_passes(once, load_of(once, hardware(4, 2))) == 0


def test_the_time_of_these_passes_is_counted():
    held = [*AWM, "reference.base_coefficient=0.003"]
    once, often = (
        plan_of(demo_config(overrides=[*held, f"optimizer.updates={n}"]), hardware())
        for n in (1, 3)
    )
    assert often.seconds_of("rollout") > once.seconds_of("rollout")
    assert often.seconds_of("update") == pytest.approx(3 * once.seconds_of("update"))


def test_a_second_penalty_needs_the_base_of_every_algorithm():
    assert needs_reference(demo_config("raft", ["reference.base_coefficient=0.1"]))
    assert not needs_reference(demo_config("raft", [*EMA, "reference.base_coefficient=0.1"]))


def test_checkpoints_hold_one_more_set():
    still, moves = _estimated(demo_config()), _estimated(demo_config(overrides=EMA))
    assert moves * 3 == still * 4
