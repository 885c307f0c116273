"""The controller of beta0: its rule by hand, and runs whose beta0 follows the divergence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.grpo import Grpo, GrpoConfig
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2, OrwCfmW2Config
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.regulariser import ControllerConfig, RegulariserConfig
from adrpo_scale.algorithms.regulariser_rules import beta0_of
from adrpo_scale.algorithms.terms import RegressionTerms
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cluster.plan.dealing import needs_reference
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.resume import find_start
from adrpo_scale.training.controller import Controller, steered
from tests.support.ranks import run_ranks
from tests.support.terms_by_hand import REWARDS
from tests.support.tiny import demo_config, demo_trainer, records, whole_tensors

BOUNDS = ControllerConfig(target=0.5, low=0.1, high=2.0)


def test_beta0_rises_above_the_target_and_falls_below_it_by_at_most_two_percent():
    assert steered(1.0, 0.5, BOUNDS) == 1.0
    assert steered(1.0, 0.55, BOUNDS) == pytest.approx(1.01, rel=1e-15)
    assert steered(1.0, 0.45, BOUNDS) == pytest.approx(0.99, rel=1e-15)
    for far in (0.6, 70.0, math.inf, math.nan):
        assert steered(1.0, far, BOUNDS) == pytest.approx(1.02, rel=1e-15)
    assert steered(1.0, 0.0, BOUNDS) == pytest.approx(0.98, rel=1e-15)
    assert steered(1.99, 9.0, BOUNDS) == 2.0 and steered(0.101, 0.0, BOUNDS) == 0.1


def test_without_a_divergence_beta0_stays():
    controller = Controller(BOUNDS, 1.0)
    controller.follow(None)
    assert controller.beta0 == 1.0
    controller.follow(0.45)
    assert controller.document() == {"beta0": steered(1.0, 0.45, BOUNDS)}
    other = Controller(BOUNDS, 1.0)
    other.restore(None)
    assert other.beta0 == 1.0
    other.restore(controller.document())
    assert other.beta0 == controller.beta0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 0.1}, "needs all three"),
        ({"low": 0.1, "high": 1.0}, "needs all three"),
        ({"target": 0.1, "low": 1.0, "high": 0.5}, "reversed"),
    ],
)
def test_a_controller_needs_a_target_and_ordered_bounds(settings, message):
    with pytest.raises(ValueError, match=message):
        ControllerConfig(**settings)


def section(low=0.1, high=2.0, **settings):
    controller = ControllerConfig(target=0.5, low=low, high=high)
    return RegulariserConfig(controller=controller, **settings)


def test_beta0_is_replaced_everywhere_and_first_lies_within_its_bounds():
    of_raft = section(shape="clip", beta0=1.0, scale="none")
    for algorithm in (
        Adrpo(AdrpoConfig(advantage_clip=0.5), RegressionTerms, regulariser=section()),
        Grpo(GrpoConfig(advantage_clip=0.5), RegressionTerms, regulariser=section()),
        OrwCfmW2(OrwCfmW2Config(), RegressionTerms, regulariser=section()),
        Raft(RaftConfig(), RegressionTerms, regulariser=of_raft),
    ):
        moved = algorithm.at(0.25)
        assert (beta0_of(algorithm), beta0_of(moved)) == (1.0, 0.25)
        kind, keys = type(algorithm), {algorithm.beta0_key: 0.25} if algorithm.beta0_key else {}
        there = algorithm.regulariser and replace(algorithm.regulariser, beta0=0.25)
        fresh = kind(
            algorithm.config.model_copy(update=keys),
            RegressionTerms,
            regulariser=section() if keys else of_raft.model_copy(update={"beta0": 0.25}),
        )
        assert fresh.regulariser == moved.regulariser == there
        assert torch.equal(fresh.credit(REWARDS).beta, moved.credit(REWARDS).beta)
    with pytest.raises(ConfigError, match=r"beta0 = 1 is not within .*low = 0.1 and high = 0.5"):
        Adrpo(AdrpoConfig(), RegressionTerms, regulariser=section(high=0.5))


def test_the_bounds_of_a_loss_hold_for_every_beta0_that_the_controller_may_choose():
    opposite = {"shape": "tanh", "sign": "opposite"}
    config = AdrpoConfig(advantage_clip=0.4)
    Adrpo(config, RegressionTerms, regulariser=section(high=1.0, **opposite))
    with pytest.raises(ConfigError, match=r"beta0 = 2 and advantages clipped to -0.8 .* is 0.3"):
        Adrpo(config, RegressionTerms, regulariser=section(high=2.0, **opposite))
    with pytest.raises(ConfigError, match=r"curvature"):  # the limit is fixed, and beta0 falls
        Grpo(GrpoConfig(advantage_min=-0.5), RegressionTerms, regulariser=section(low=0.4))


# ---- runs ----------------------------------------------------------------------------------------

SETS = [
    "iterations=3",
    "algorithm.advantage_clip=0.9",
    "regulariser.controller={target=1e-6, low=0.5, high=1.5}",
    "checkpoint.every_iterations=2",
    "domain.lora.rank=2",
]
RAFT = ["iterations=3", *SETS[2:], "regulariser.shape=constant", "regulariser.beta0=1.0"]


def trained(folder, config, last=None):
    folder.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(config, folder, find_start(config, folder))
    trainer.train(last)
    trainer.saver.close()
    return trainer


def whole_and_in_pieces(rank, world, folder):
    """(beta0, weights) of a run in one and of one in two pieces, and beta0 of a fork's first."""
    config = demo_config("adrpo", SETS)
    whole = demo_trainer(folder / "whole", config)
    whole.train()
    trained(folder / "pieces", config, 2)
    pieces = trained(folder / "pieces", config)
    fork = demo_config("adrpo", [*SETS, f"init_from={folder / 'pieces'}"])
    (folder / "fork").mkdir(exist_ok=True)
    start = find_start(fork, folder / "fork")
    begun = build_trainer(fork, folder / "fork", start).state.controller.beta0
    return [
        *((t.state.controller.beta0, whole_tensors(t.engine)) for t in (whole, pieces)),
        begun,
    ]


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("controller")
    return folder, run_ranks(whole_and_in_pieces, request.param, folder)


def test_beta0_follows_the_divergence_in_the_log(run):
    folder, _ = run
    lines = records(folder / "whole")
    beta0, config = 1.0, ControllerConfig(target=1e-6, low=0.5, high=1.5)
    for line in lines:
        assert line["beta0"] == beta0
        assert line["beta_mean"] == pytest.approx(beta0, rel=1)
        beta0 = steered(beta0, line["divergence"], config)
    assert len({line["beta0"] for line in lines}) == len(lines) == 3


def test_a_resumed_run_and_all_ranks_have_the_same_beta0_to_the_bit(run):
    folder, ranks = run
    values = {beta0 for whole, pieces, _ in ranks for beta0, _ in (whole, pieces)}
    assert len(values) == 1 and values != {1.0}
    assert [line["beta0"] for line in records(folder / "pieces")] == [
        line["beta0"] for line in records(folder / "whole")
    ]
    (_, whole), (_, pieces), _ = ranks[0]
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    document = open_checkpoint(str(folder / "pieces")).manifest.document
    assert document["controller"] == {"beta0": records(folder / "whole")[2]["beta0"]}


def test_a_fork_begins_with_the_beta0_of_its_config(run):
    _, ranks = run
    assert {begun for *_, begun in ranks} == {1.0}


def raft_run(rank, world, folder):
    config = demo_config("raft", RAFT)
    demo_trainer(folder, config).train()
    return needs_reference(config)


def test_the_divergence_is_always_measured_and_raft_adds_it_to_its_loss(tmp_path):
    assert run_ranks(raft_run, 1, tmp_path) == [True]
    lines = records(tmp_path)
    assert all(line["divergence"] is not None for line in lines)
    assert lines[0]["beta0"] == 1.0 == lines[0]["beta_max"] and lines[2]["beta0"] != 1.0
