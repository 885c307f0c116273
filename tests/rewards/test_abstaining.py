"""None of a reward: it abstains, which is not to fail."""

from __future__ import annotations

import logging

import pytest
import torch

from adrpo_scale.algorithms.advantages import advantages, combined
from adrpo_scale.core.errors import LimitReached, RewardError
from adrpo_scale.core.types import Completion, Prompt, Rows
from adrpo_scale.rewards.calls import ABSTAINED, Info, rewards_of
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig
from adrpo_scale.run.build import build_trainer
from adrpo_scale.training.evaluator import finite_mean, reward_planes
from adrpo_scale.training.rollout import gather_rewards
from tests.support.tiny import records
from tests.support.tiny_text import text_config

NAN = float("nan")
TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7", "w8 w9", "w10", "w11 w12 w13"]  # of tests.support.tiny_text
ME = "tests.rewards.test_abstaining"


def length(completion):
    return float(len(set(completion.text.split()))) - 0.1 * len(completion.tokens)


def is_long(prompt):
    return len(prompt.text.split()) > 1


def of_long(completions, prompts):
    pairs = zip(completions, prompts, strict=True)
    return [length(c) if is_long(p) else None for c, p in pairs]


def of_short(completions, prompts):
    pairs = zip(completions, prompts, strict=True)
    return [None if is_long(p) else length(c) for c, p in pairs]


def nothing(completions, prompts):
    return [None] * len(prompts)


def with_info(completions, prompts):
    tokens = [len(c.tokens) for c in completions]
    info = {"tokens": tokens, "calls": 1, "model": "judge-2", "some": [*tokens[:-1], None]}
    return torch.tensor([length(c) for c in completions]), info


def fails_on_short(completions, prompts):
    pairs = zip(completions, prompts, strict=True)
    return [length(c) if is_long(p) else NAN for c, p in pairs]


def function(name, **settings):
    return FunctionReward(
        FunctionRewardConfig(path=f"{ME}:{name}", name=name, **settings), torch.device("cpu")
    )


def gathered(rewards, *rows):
    """Rewards of two prompts with two samples each; rows: of each sample, a number a reward."""
    ids = torch.arange(4)
    prompts = [Prompt(7, "seven"), Prompt(3, "three")]
    made = Rows(ids, torch.tensor([7, 7, 3, 3]), {})
    return gather_rewards(made, torch.tensor(rows).double(), rewards, prompts, 2)


def test_a_reward_that_abstains_is_left_out_of_the_sum_and_one_that_failed_masks():
    rewards = [function("of_long", weight=2.0), function("of_short", weight=0.5)]
    found = gathered(rewards, (1.0, ABSTAINED), (3.0, 4.0), (ABSTAINED, ABSTAINED), (NAN, 4.0))
    assert found.total_PG.tolist() == [[2.0, 8.0], [0.0, 0.0]]
    assert found.mask_PG.tolist() == [[True, True], [False, False]]
    assert found.unscored_PG.tolist() == [[False, False], [True, False]]
    assert not bool(found.per_reward_RPG.isinf().any())


def test_normalising_each_reward_goes_by_the_samples_that_it_scored():
    """One reward of two for a prompt is that reward alone; another library's mean was NaN."""
    rewards = [function("of_long"), function("of_short")]
    found = gathered(rewards, (1.0, ABSTAINED), (3.0, ABSTAINED), (ABSTAINED, 5.0), (2.0, 9.0))
    total = combined(found, "normalise_each")
    assert total.isfinite().all()
    alone = advantages(
        torch.tensor([[1.0, 3.0]]).double(), torch.ones(1, 2).bool(), scale="group_std"
    )
    assert torch.equal(total[0], alone[0]) and float(total[1, 1]) > float(total[1, 0])


def test_evaluations_leave_out_what_abstains_and_what_failed():
    rewards = [function("of_long"), function("of_short")]
    found = gathered(rewards, (1.0, ABSTAINED), (3.0, 4.0), (ABSTAINED, ABSTAINED), (NAN, 4.0))
    planes = reward_planes(found, {"of_long", "of_short"})
    assert {name: finite_mean(plane) for name, plane in planes.items()} == {
        "reward": (4.0, 2),
        "of_long": (2.0, 2),
        "of_short": (4.0, 2),
    }


def test_none_is_no_fault_and_a_reward_without_an_answer_is(caplog):
    caplog.set_level(logging.WARNING)
    prompts = [Prompt(n, text) for n, text in enumerate(TEXTS)]
    found = rewards_of(function("of_long"), [Completion("a b")] * 6, prompts)
    assert found.tolist() == [2.0, ABSTAINED, 2.0, 2.0, ABSTAINED, 2.0]
    assert caplog.messages == []
    no_answer = function("of_long")
    no_answer._function = lambda completions, prompts: None
    with pytest.raises(RewardError, match=r"gave nothing \(None\) for 6 samples"):
        rewards_of(no_answer, [Completion("a b")] * 6, prompts)


def test_numbers_beside_the_scores_are_averaged_and_words_left_out():
    info, prompts = Info(), [Prompt(n, text) for n, text in enumerate(TEXTS)]
    completions = [Completion("a", tuple(range(n))) for n in range(6)]
    for part in (slice(0, 2), slice(2, 6)):  # chunks of different sizes
        rewards_of(function("with_info"), completions[part], prompts[part], info)
    assert info.means() == {
        "with_info_tokens": 2.5,
        "with_info_calls": 1.0,
        "with_info_some": (0 + 2 + 3 + 4) / 4,
    }


def train(folder, *names, **settings):
    rewards = ", ".join(f'{{kind="function", path="{ME}:{name}", name="{name}"}}' for name in names)
    overrides = [f"rewards=[{rewards}]", "prompts.per_iteration=6", "prompts.group_size=2"]
    overrides += [f"{key}={value}" for key, value in settings.items()]
    build_trainer(text_config(folder / "model", overrides), folder / "run").train()
    return records(folder / "run")


def test_a_mixed_set_with_a_reward_for_each_task_trains(tmp_path, caplog):
    (line,) = train(tmp_path, "of_long", "of_short", "with_info")
    assert line["masked"] == 0 and line["updates"] > 0 and line["grad_norm"] > 0
    assert line["unscored"] == 0 and line["abstained_with_info"] == 0
    assert line["abstained_of_long"] == pytest.approx(2 / 6)
    assert line["abstained_of_short"] == pytest.approx(4 / 6)
    assert line["info_with_info_tokens"] == line["completion_tokens"]
    assert line["reward_of_long"] is not None and "failed" not in caplog.text


def test_samples_that_no_reward_scores_are_masked_and_told_apart_from_failures(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (line,) = train(tmp_path / "one", "of_long")
    assert (line["masked"], line["unscored"]) == (4, 4)
    assert "4 samples are masked because every reward abstained" in caplog.text
    caplog.clear()
    (line,) = train(tmp_path / "two", "fails_on_short")
    assert line["masked"] == 4 and "unscored" not in line
    assert "4 samples are masked because a reward failed" in caplog.text


def test_a_run_in_which_nothing_is_scored_ends_as_it_did(tmp_path):
    with pytest.raises(LimitReached, match="nothing gave None for every sample: let one of them"):
        train(tmp_path, "nothing", iterations=5)
    assert len(records(tmp_path / "run")) == 3
