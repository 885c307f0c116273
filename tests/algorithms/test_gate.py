"""The gate of the regulariser: which samples are held, and a run whose gate is another reward."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.gate import GateConfig, disagreement, is_open
from adrpo_scale.algorithms.regulariser import RegulariserConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms, RegressionTerms
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.types import Prompt, Rows
from adrpo_scale.rewards.calls import ABSTAINED
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig
from adrpo_scale.training.iteration import credit_record
from adrpo_scale.training.rollout import gather_rewards
from tests.support.ranks import run_ranks
from tests.support.terms_by_hand import TOKENS, scored
from tests.support.tiny import demo_config, demo_trainer, records

NAN = math.nan


def gated(total, *gates, mask=None):
    rewards = scored(total, mask)
    planes = torch.tensor(gates, dtype=torch.float64)
    return dataclasses.replace(rewards, gates_RPG=planes, gate_names=["g"] * len(gates))


def held(rewards, share, side="overrated"):
    return is_open(rewards, rewards.total_PG, share, side).tolist()


def test_the_overrated_are_held_and_ranks_are_over_the_whole_iteration():
    rewards = gated([[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.2], [0.4, 0.3]])
    apart = disagreement(rewards.total_PG, rewards.mask_PG, rewards.gates_RPG).tolist()
    assert apart == pytest.approx([0, 0, -2 / 3, 2 / 3], abs=1e-9)
    assert held(rewards, 0.5) == [False, False, False, True]
    assert held(rewards, 0.5, "underrated") == [False, False, True, False]


def test_the_mean_of_several_gates_counts_and_the_unscored_are_held():
    rewards = gated(
        [[1.0, 2.0, 3.0, 4.0]], [[4.0, 3.0, 2.0, NAN]], [[1.0, 2.0, 9.0, NAN]], mask=[[True] * 4]
    )
    apart = disagreement(rewards.total_PG, rewards.mask_PG, rewards.gates_RPG)
    assert apart[:3].tolist() == pytest.approx([-1, -1 / 3, 1 / 3], abs=1e-9)
    assert apart[3].isnan() and held(rewards, 0.1) == [False, False, False, True]
    masked = gated([[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]], mask=[[True, True, False]])
    assert held(masked, 1.0)[2]  # it counts nowhere, whatever its beta is


def test_where_all_agree_none_is_held():
    assert not any(held(gated([[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]), 1.0))
    assert not any(held(gated([[1.0, 1.0, 1.0]], [[5.0, 5.0, 5.0]]), 1.0))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_the_underrated_are_those_of_the_published_rule(share):
    """Ranks from the best, the reward's less the mean of the others', a percentile of those from 0
    on: written out with numpy, for rewards without ties."""
    for seed in range(12):
        columns = np.random.default_rng(seed).random((3, 2 + 3 * seed))
        best_first = [1 + (-column).argsort().argsort() for column in columns]
        apart = best_first[0] - (best_first[1] + best_first[2]) / 2
        threshold = np.percentile(apart[apart >= 0], 100 - 100 * share)
        rewards = gated(*([column.tolist()] for column in columns))
        assert held(rewards, share, "underrated") == (apart > threshold + 1e-6).tolist()


def test_a_closed_gate_sets_beta_to_0_or_to_the_floor():
    rewards = gated([[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 4.0, 3.0]])
    plain = Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms).credit(rewards).beta
    for floor, closed in ((None, 0.0), (0.25, 0.01)):
        section = RegulariserConfig(gate=GateConfig(share=0.5), floor=floor)
        algorithm = Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms, regulariser=section)
        expected = [closed, closed, closed, max(float(plain[3]), closed)]
        assert algorithm.credit(rewards).beta.tolist() == expected
    # A plan has no gates' rewards: all samples are held.
    assert torch.equal(algorithm.credit(scored([[1.0, 2.0]])).beta[:1], plain[:1])


def test_the_share_of_open_gates_is_of_the_samples_that_are_not_masked():
    rewards = gated(
        [[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 4.0, 3.0]], mask=[[True, False, True, True]]
    )
    section = RegulariserConfig(gate=GateConfig(share=0.5))
    algorithm = Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms, regulariser=section)
    open_S = algorithm.open_gates(rewards)
    assert open_S[rewards.mask_PG.flatten()].tolist() == [False, False, True]
    record = credit_record(rewards, algorithm.credit(rewards), open_S)
    assert record["open_gates"] == pytest.approx(1 / 3)
    plain = Adrpo(AdrpoConfig(**TOKENS), LikelihoodTerms)
    assert plain.open_gates(rewards) is None
    assert "open_gates" not in credit_record(rewards, plain.credit(rewards))


def test_on_flow_a_gate_needs_no_negative_advantage_or_a_floor():
    gate = GateConfig(share=0.1)
    with pytest.raises(ConfigError, match=r"advantage_clip = \[0.0, 1\], or regulariser.floor ab"):
        Adrpo(AdrpoConfig(), RegressionTerms, regulariser=RegulariserConfig(gate=gate))
    Adrpo(AdrpoConfig(), RegressionTerms, regulariser=RegulariserConfig(gate=gate, floor=1.1))
    good = AdrpoConfig(advantage_clip=[0.0, 1.0])
    Adrpo(good, RegressionTerms, regulariser=RegulariserConfig(gate=gate))


# ---- rewards outside the sum ---------------------------------------------------------------------


def function(name):
    config = FunctionRewardConfig(path="tests.rewards.test_abstaining:length", name=name)
    return FunctionReward(config, torch.device("cpu"))


def test_a_gates_rewards_are_outside_the_sum_and_its_failures_mask_nothing():
    made = Rows(torch.arange(4), torch.tensor([7, 7, 3, 3]), {})
    rows = torch.tensor([[1.0, 9.0], [2.0, NAN], [3.0, ABSTAINED], [NAN, 8.0]]).double()
    prompts = [Prompt(7, "seven"), Prompt(3, "three")]
    both = [function("mine"), function("other")]
    found = gather_rewards(made, rows, both, prompts, 2, gates={"other"})
    assert found.names == ["mine"] and found.gate_names == ["other"]
    assert found.total_PG.tolist() == [[1.0, 2.0], [3.0, 0.0]]
    assert found.mask_PG.tolist() == [[True, True], [True, False]]
    gates = found.gates_RPG.flatten().tolist()
    assert gates[0] == 9.0 and gates[3] == 8.0 and all(map(math.isnan, gates[1:3]))
    plain = gather_rewards(made, rows[:, :1], both[:1], prompts, 2)
    assert plain.gates_RPG is None and torch.equal(plain.total_PG, found.total_PG)


GATE = [
    "algorithm.advantage_clip=[0.0, 1.0]",
    "domain.lora.rank=2",
    "rewards.1.use=gate",
    "regulariser.gate.share=0.5",
]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["rewards.1.use=gate"], "'checker'.* have use = .gate., and regulariser.gate.share"),
        (["regulariser.gate.share=0.1", "regulariser.floor=1.1"], "without a reward to compare"),
        (["rewards.0.use=gate", *GATE[3:4]], "no reward to train on"),
    ],
)
def test_a_gate_and_its_rewards_go_together(settings, message):
    with pytest.raises(ConfigError, match=message):
        demo_config("adrpo", settings)


def gated_run(rank, world, folder):
    demo_trainer(folder, demo_config("adrpo", GATE)).train()


def test_a_run_with_a_gate_logs_its_reward_apart(tmp_path):
    run_ranks(gated_run, 1, tmp_path)
    (line,) = records(tmp_path)
    assert 0 <= line["gate_checker"] <= 1 and "reward_checker" not in line
    assert line["beta_min"] == 0.0 < line["open_gates"] < 1.0
