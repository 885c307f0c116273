"""Warnings of an iteration, from its record and the run's own settings; and runs that learn
nothing."""

from __future__ import annotations

import json
import math

import pytest

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.dpo import Dpo, DpoConfig
from adrpo_scale.algorithms.raft import Raft, RaftConfig
from adrpo_scale.algorithms.regulariser import ControllerConfig, RegulariserConfig
from adrpo_scale.algorithms.terms import LikelihoodTerms
from adrpo_scale.cluster.status.read import read
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.errors import NothingLearned, exit_code
from adrpo_scale.domains.flow import FlowConfig
from adrpo_scale.domains.text_config import TextConfig
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.run import train as running
from adrpo_scale.run.load import LoadedConfig
from adrpo_scale.run.starts import stalled_starts
from adrpo_scale.training.advice import Settings, warnings_of
from adrpo_scale.training.limits import LimitsConfig
from adrpo_scale.training.state import Counters
from tests.support.ranks import run_ranks
from tests.support.starts import records_of
from tests.support.tiny import records
from tests.support.tiny_text import text_config

RECORD = {
    "advantage_abs_mean": 1.0,
    "beta_min": 0.02,
    "degenerate_groups": 0.0,
    "masked": 0,
    "samples": 16,
    "reward": 0.5,
    "reward_std": 0.1,
    "divergence": 0.01,
    "entropy": 0.4,
    "truncated": 0.0,
    "grad_norm": 0.3,
    "updates": 2,
    "updates_skipped": 0,
}
STATED = {"beta0": 0.04, "advantage_min": -0.04, "advantage_max": 0.04}


def adrpo(**changed):
    return Adrpo(AdrpoConfig(**({**STATED, "scale": "group_std"} | changed)), LikelihoodTerms)


def warned(record=None, algorithm=None, domain=None, limits=None, signal=None, **more):
    """kind → text"""
    settings = Settings(
        algorithm or adrpo(),
        TextConfig(model="m", **(domain or {})),
        OptimizerConfig(learning_rate=1e-3),
        LimitsConfig(**(limits or {})),
        **more,
    )
    return dict(warnings_of({**RECORD, **(record or {})}, settings, signal))


def test_a_healthy_iteration_is_not_warned_of():
    assert warned() == {}


# ---- rewards and advantages --------------------------------------------------------------------


def test_small_advantages_name_a_scale_only_where_none_is_set():
    small = {"advantage_abs_mean": 0.01}
    text = warned(small, adrpo(scale="none"))["small advantages"]
    assert 'set algorithm.scale = "group_std"' in text
    text = warned(small)["small advantages"]
    assert "although algorithm.scale = 'group_std'" in text and "or set" not in text
    assert "0 to 100" in text


def test_equal_groups_are_one_warning_with_what_the_algorithm_makes_of_them():
    equal = {"degenerate_groups": 0.75, "advantage_abs_mean": 0.01}
    (text,) = warned(equal).values()
    assert "75% of the groups" in text and "their advantages are 0" in text
    raft, dpo = Raft(RaftConfig(), LikelihoodTerms), Dpo(DpoConfig(beta=0.1), LikelihoodTerms)
    assert "the first sample of each is trained on" in warned(equal, raft)["degenerate groups"]
    assert "they give no pair" in warned(equal, dpo)["degenerate groups"]
    assert "raise prompts.group_size" in text
    no_entropy = warned({**equal, "entropy": 0.0})["degenerate groups"]
    assert "copies" in no_entropy and "group_size" not in no_entropy
    all_wrong = warned({**equal, "reward": 0.0, "reward_std": 0.0})["degenerate groups"]
    assert "every sample has 0" in all_wrong and "sometimes solved" in all_wrong


def test_groups_of_masked_samples_are_not_warned_of_as_equal():
    assert list(warned({"masked": 2})) == ["masked"]
    # A larger group would not help a reward that fails on every sample.
    gone = {"masked": 16, "advantage_abs_mean": None, "reward": None, "degenerate_groups": 1.0}
    texts = warned({**gone, "updates": 0, "grad_norm": None})
    assert list(texts) == ["nothing learned", "masked"]


def test_skipped_steps_name_their_cause():
    skipped = {"updates": 2, "updates_skipped": 2}
    text = warned({**skipped, "grad_norm": math.nan})["nothing learned"]
    assert "no gradient was finite: lower optimizer.learning_rate" in text
    text = warned({**skipped, "grad_norm": 12.5})["nothing learned"]
    assert "the engine took no step" in text and "12.5" in text


# ---- truncation --------------------------------------------------------------------------------


def test_truncation_names_mask_truncated_only_where_that_helps():
    text = warned({"truncated": 0.75})["truncated"]
    assert "raise domain.rollout.max_new_tokens (now 512), or set domain.mask_truncated" in text
    assert "mask_truncated" not in warned({"truncated": 1.0})["truncated"]
    text = warned({"truncated": 0.75}, domain={"mask_truncated": True})["truncated"]
    assert "set domain.mask_truncated" not in text and "leaves all of these out" in text


def test_everything_cut_off_and_masked_is_said_with_its_settings():
    domain = {"mask_truncated": True, "rollout": {"max_new_tokens": 8}}
    record = {"truncated": 1.0, "updates": 0, "grad_norm": None, "divergence": None}
    (text,) = warned(record, domain=domain).values()
    assert text == (
        "nothing was learned: 100% of the completions were cut off at "
        "domain.rollout.max_new_tokens = 8, and domain.mask_truncated = true leaves them out: "
        "raise max_new_tokens, or set mask_truncated = false"
    )


# ---- divergence and entropy --------------------------------------------------------------------


def test_a_policy_that_has_left_the_reference_and_has_no_entropy_is_warned_of():
    texts = warned({"divergence": 8.5, "entropy": 0.0})
    assert list(texts) == ["large divergence", "no entropy"]
    for text in texts.values():
        assert "ptimizer.learning_rate (now 0.001)" in text
        assert "raise algorithm.beta0 (now 0.04)" in text
    assert "set limits.max_divergence" in texts["large divergence"]
    assert "set algorithm.entropy_coef" in texts["no entropy"]
    assert "temperature" not in texts["no entropy"]


def test_advice_on_entropy_is_of_the_settings():
    text = warned(
        {"entropy": 0.0},
        adrpo(entropy_coef=0.001),
        {"rollout": {"temperature": 0.5}},
    )["no entropy"]
    assert "raise algorithm.entropy_coef (now 0.001)" in text
    assert "raise domain.rollout.temperature (now 0.5)" in text
    raft = Raft(RaftConfig(), LikelihoodTerms)
    text = warned({"entropy": 0.0}, raft)["no entropy"]
    assert "algorithm.beta" not in text and "entropy_coef" not in text


FAR = {"divergence": 8.5}


def regularised(algorithm=Adrpo, config=None, **section):
    config = config or AdrpoConfig(**STATED, scale="group_std")
    return algorithm(config, LikelihoodTerms, regulariser=RegulariserConfig(**section))


def test_where_the_regulariser_holds_the_policy_its_keys_are_the_remedy():
    assert "regulariser" not in warned({**FAR, "beta_min": 0.01})["large divergence"]
    text = warned({**FAR, "beta_min": 0.0})["large divergence"]
    assert "set regulariser.floor, because beta falls to 0" in text
    low = regularised(floor=0.0)
    assert (
        "raise regulariser.floor (now 0)"
        in warned({**FAR, "beta_min": 0.0}, low)["large divergence"]
    )
    gated = regularised(gate={"share": 0.1}, floor=0.5)
    text = warned({**FAR, "beta_min": 0.02}, gated)["large divergence"]
    assert "raise regulariser.gate.share (now 0.1)" in text
    raft = regularised(Raft, RaftConfig(), shape="constant", beta0=0.3)
    text = warned({**FAR, "beta_min": 0.3}, raft)["large divergence"]
    assert "raise regulariser.beta0 (now 0.3)" in text and "algorithm.beta" not in text
    text = warned({**FAR, "beta_min": 0.0}, Raft(RaftConfig(), LikelihoodTerms))["large divergence"]
    assert 'set regulariser.shape = "constant" and regulariser.beta0' in text


def test_a_beta0_that_is_steered_is_changed_by_its_target_or_its_bound():
    steered = ControllerConfig(target=0.1, low=0.01, high=0.4)
    controlled = regularised(controller=steered)
    for beta0, expected in (
        (0.2, "lower regulariser.controller.target (now 0.1)"),
        (0.4, "raise regulariser.controller.high (now 0.4)"),
    ):
        text = warned({**FAR, "beta0": beta0}, controlled, controller=steered)["large divergence"]
        assert expected in text and "algorithm.beta0" not in text


def test_a_stated_limit_is_the_users_own_condition():
    assert warned({"divergence": 8.5}, limits={"max_divergence": 20.0}) == {}


def test_pictures_have_neither_tokens_nor_entropy():
    settings = Settings(adrpo(), FlowConfig(model="m"), OptimizerConfig(), LimitsConfig())
    record = {k: v for k, v in RECORD.items() if k not in ("entropy", "truncated")}
    assert dict(warnings_of(record, settings)) == {}


# ---- noise --------------------------------------------------------------------------------------


def test_a_gradient_of_noise_is_warned_of_with_the_settings_that_help():
    assert warned(signal=None) == warned(signal=0.031) == {}
    text = warned(signal=0.0049)["noise"]
    assert "its signal is 0.0049 of 1" in text and "step of 16 samples" in text
    assert "Raise prompts.per_iteration or prompts.group_size; or give a graded reward" in text
    assert "draws_per_sample" not in text  # tokens have one draw
    settings = Settings(adrpo(), FlowConfig(model="m"), OptimizerConfig(), LimitsConfig())
    text = dict(warnings_of(RECORD, settings, -0.01))["noise"]
    for key in ("prompts.group_size", "optimizer.draws_per_sample (now 1)", "graded = true"):
        assert key in text


def test_a_run_that_learned_nothing_is_not_called_noise_too():
    assert list(warned({"degenerate_groups": 1.0}, signal=0.0)) == ["nothing learned"]


# ---- runs that learn nothing -------------------------------------------------------------------


def always_one(completions, prompts):
    return [1.0] * len(completions)


def outcomes(rank, world, folder, overrides, starts):
    """(exit code, message) of each start of a run, one after the other."""
    found = []
    for _ in range(starts):
        loaded = LoadedConfig("run", text_config(folder, overrides), {})
        try:
            running.train(loaded, running.TrainOptions(folder / "run"))
            found.append((0, ""))
        except NothingLearned as error:
            found.append((exit_code(error), str(error)))
    return found


CUT = [
    "domain.mask_truncated=true",
    "domain.rollout.max_new_tokens=1",
    "prompts.per_iteration=1",
    "seed=1",
]
CONSTANT = ["rewards=[{kind='function', path='tests.training.test_warnings:always_one'}]"]


@pytest.mark.parametrize(
    ("overrides", "world", "why"),
    [
        (CUT, 2, "max_new_tokens = 1, and domain.mask_truncated = true leaves them out"),
        (CONSTANT, 1, "no group has two samples of different rewards; every sample has 1"),
    ],
    ids=["everything cut off", "one reward for all"],
)
def test_a_run_that_learned_nothing_is_not_done(overrides, world, why, tmp_path):
    text_config(tmp_path)
    ranks = run_ranks(outcomes, world, tmp_path, [*overrides, "iterations=2"], 2)
    for first, second in ranks:
        assert first[0] == second[0] == 2
        assert "nothing was learned in 2 iterations: " in first[1] and why in first[1]
        assert "nothing was learned in 2 iterations; the logs of its earlier starts" in second[1]
    lengths = [line["completion_tokens"] for line in records(tmp_path / "run")]
    assert min(lengths) >= 1  # also of completions that are left out of the loss
    log = (tmp_path / "run/logs/rank-000.log").read_text()
    assert log.count("iteration 1: nothing was learned: ") == 1
    status = judge(read(tmp_path / "run"))
    assert status.state == "failed" and status.why.startswith("nothing was learned in 2 iterations")
    assert "(exit code 2)" in status.why


SCORED = []  # samples that the reward below has scored


def good_at_first(completions, prompts):
    """Numbers that differ for the trial and two iterations, then one for all."""
    SCORED.extend(completions)
    late = len(SCORED) > 3 + 2 * 16
    return [1.0 if late else float(len(SCORED) + n) for n in range(len(completions))]


def test_a_run_that_learned_and_then_lost_everything_says_so(tmp_path):
    SCORED.clear()
    reward = [CONSTANT[0].replace("always_one", "good_at_first")]
    config = text_config(tmp_path, [*reward, "iterations=4", "evaluation.every=0"])
    assert config.prompts.per_iteration * config.prompts.group_size == 16
    for _ in range(2):
        running.train(LoadedConfig("run", config, {}), running.TrainOptions(tmp_path / "run"))
        said = "the last 2 of 4 iterations taught nothing"
        log = (tmp_path / "run/logs/rank-000.log").read_text().splitlines()
        assert said in log[-1] and "an earlier checkpoint" in log[-1]
        assert records_of(tmp_path / "run")[-1]["outcome"].startswith(f"done, but {said}")
        status = judge(read(tmp_path / "run"))
        assert status.state == "done" and status.why.startswith(said)
        assert not stalled_starts(tmp_path / "run", None, 4)


def test_a_checkpoint_from_before_counts_its_steps():
    stored = {"iteration": 3, "cursor": 12, "step": 6, "nonfinite_in_a_row": 0, "evaluated": 3}
    assert Counters.read(stored).learned == 6
    assert Counters.read({**stored, "learned": 0}).learned == 0
    assert Counters.read(json.loads(json.dumps(stored))).iteration == 3
