"""Who answers `plan`: rewards, domains and engines by their classes, those of a user's own too."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from adrpo_scale.cluster.plan.advice import ladder
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.plan.view import facts, show
from adrpo_scale.cluster.plan.workload import engine_of, workload_of
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.settings import setting
from adrpo_scale.domains.base import Domain
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.engines.fsdp2 import Fsdp2Engine
from adrpo_scale.engines.fsdp2_plan import Fsdp2Plan
from adrpo_scale.engines.planning import Price, Rung
from adrpo_scale.engines.workload import Frozen, plain_spec
from adrpo_scale.rewards.base import PlainReward, Reward, RewardConfig
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.registry import DOMAINS, REWARDS
from adrpo_scale.training.media import medium_of
from tests.cluster.test_plan import hardware
from tests.support.tiny import demo_config

WIDTH = 256


class OwnConfig(RewardConfig):
    batch: int = setting(4, "rows at once")


class Silent(Reward):
    """States nothing of its models."""

    Config: ClassVar[Any] = OwnConfig

    def __call__(self, artifacts, prompts):
        return torch.zeros(len(artifacts))


class Stating(Silent):
    """States the model that it holds, and what can be smaller."""

    @classmethod
    def models(cls, config, section, dtype, tokens):
        spec = plain_spec(lambda: nn.Linear(WIDTH, WIDTH))

        def call(model: Any, rows: int) -> Any:
            return model(torch.empty(rows, WIDTH))

        name = f"reward {config.label}"
        return [Frozen(name, spec, torch.float32, "replicated", "reward", config.batch, call)]

    @classmethod
    def rungs(cls, config, section):
        return [Rung((f"{section}.batch=1",), ("reward",), Price.PIECES)]


class Plain(PlainReward, Silent):
    """States that it holds none."""


def own(component):
    """As a config names it."""
    return f"{__name__}:{component.__name__}"


def with_reward(reward):
    data = demo_config().resolved()
    data["rewards"].append({"kind": own(reward), "name": "mine"})
    return parse_config(data)


def test_a_reward_that_states_nothing_is_named_as_not_counted(capsys):
    plan = plan_of(with_reward(Silent), hardware())
    assert plan.not_counted == ["reward mine: its memory and time"]
    assert json.loads(json.dumps(facts(plan)))["not_counted"] == plan.not_counted
    show(plan)
    assert "not counted: reward mine" in capsys.readouterr().out


def test_the_model_that_a_reward_states_is_counted():
    config = with_reward(Stating)
    plan = plan_of(config, hardware())
    assert not plan.not_counted
    held = {item.name: item.bytes for item in plan.items}
    assert held["reward mine: whole"] == 4 * (WIDTH * WIDTH + WIDTH)
    assert held["reward mine: at work"] >= 4 * 4 * WIDTH
    place = len(config.rewards) - 1
    assert (f"rewards.{place}.batch=1",) in [rung.settings for rung in ladder(config, plan)]


def test_a_reward_that_states_none_is_no_gap():
    plan, bare = (
        plan_of(with_reward(Plain), hardware()),
        plan_of(demo_config(), hardware()),
    )
    assert not plan.not_counted and plan.items == bare.items


@pytest.mark.parametrize("name", list(REWARDS))
def test_every_reward_of_the_package_states_its_models_or_is_a_function(name):
    states = REWARDS[name].models.__func__ is not Reward.models.__func__
    assert states == (name != "function")


# ---- engines ---------------------------------------------------------------------------------


class ThirdEngine(Fsdp2Engine):
    """Of somebody's own; what it inherits here is beside the point."""

    planned_by: ClassVar[str] = ""


class AnsweringEngine(ThirdEngine):
    planned_by: ClassVar[str] = f"{__name__}:ThirdPlan"


class ThirdPlan(Fsdp2Plan):
    """As FSDP2, with a buffer of its own and a change of its own."""

    def update_memory(self, policy, peak, gradients, world):
        found = super().update_memory(policy, peak, gradients, world)
        return type(found)(found.waiting, found.working + 12345)

    def host_rungs(self):
        yield Rung(("engine.threads=2",), ("update",), Price.HOST)


def with_engine(engine):
    return parse_config(demo_config().resolved() | {"engine": {"name": own(engine)}})


def test_an_engine_that_gives_no_answers_is_refused():
    config = with_engine(ThirdEngine)
    with pytest.raises(ConfigError, match=r"ThirdEngine' shards: set ThirdEngine\.planned_by to"):
        plan_of(config, hardware())


def test_an_engine_of_ones_own_answers_for_shards_and_advice():
    config = with_engine(AnsweringEngine)
    plan, as_fsdp2 = plan_of(config, hardware()), plan_of(demo_config(), hardware())
    assert isinstance(engine_of(config), ThirdPlan)
    assert plan.engine.startswith(f'{own(AnsweringEngine)}, shard "')
    assert plan.memory_of("update") == as_fsdp2.memory_of("update") + 12345
    mine, theirs = ([r.settings for r in ladder(c, plan)] for c in (config, demo_config()))
    assert [settings for settings in mine if settings not in theirs] == [("engine.threads=2",)]


# ---- domains ---------------------------------------------------------------------------------


class Unplanned(FlowDomain):
    workload = Domain.__dict__["workload"]


def test_a_domain_that_states_no_workload_is_refused():
    data = demo_config().resolved()
    data["domain"]["name"] = own(Unplanned)
    with pytest.raises(ConfigError, match="Unplanned' computes: give its class Unplanned the"):
        workload_of(parse_config(data))


@pytest.mark.parametrize("name", list(DOMAINS))
def test_a_domain_is_one_row_of_the_registry(name):
    """Everything else is asked of its class."""
    for answer in ("workload", "weights_in", "recognises"):
        assert getattr(DOMAINS[name], answer).__func__ is not getattr(Domain, answer).__func__
    assert DOMAINS[name].adapted
    assert medium_of(DOMAINS[name]).summary
