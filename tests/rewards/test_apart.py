"""Rewards beside each other and in processes of their own, where they can be ended."""

from __future__ import annotations

import logging
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.apart import apart
from adrpo_scale.rewards.base import Embedding, PlainReward, RewardConfig
from adrpo_scale.rewards.calls import ABSTAINED, embeddings_of, rewards_of
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig
from adrpo_scale.rewards.text import MathVerify, MathVerifyConfig
from tests.support import starts
from tests.support.tiny import records
from tests.support.waiting import wait_until

CPU = torch.device("cpu")
ME = "tests.support.misbehaving"
PICTURES = [np.full((4, 4, 3), 52, dtype=np.uint8) for _ in range(2)]


def config(name, **settings):
    return FunctionRewardConfig(path=f"{ME}:{name}", name=name, **settings)


def function(name):
    return FunctionReward(config(name), CPU)


def obeyed(limit):
    return apart(FunctionReward, config("obeys", time_limit=limit), CPU)


def scores(reward, *texts):
    prompts = [Prompt(number, text) for number, text in enumerate(texts)]
    return rewards_of(reward, [Completion(text) for text in texts], prompts).tolist()


def told(found):
    return ["nan" if math.isnan(value) else value for value in found]


# ---- in the run's process ------------------------------------------------------------------------


def test_no_reward_sees_what_another_has_written():
    prompts = [Prompt(n, "", {"answer": "4", "words": ["a", "b"]}) for n in range(2)]
    rewards = [function(name) for name in ("writes", "looks", "writes", "looks")]
    found = [rewards_of(reward, PICTURES, prompts).tolist() for reward in rewards]
    assert found == [[52, 52], [55, 55], [52, 52], [55, 55]]
    assert all(bool((picture == 52).all()) for picture in PICTURES)
    assert prompts[0].metadata == {"answer": "4", "words": ["a", "b"]}


class Draws(PlainReward, Embedding):
    Config = RewardConfig

    def __init__(self, config, device):
        super().__init__(config)

    def __call__(self, artifacts, prompts):
        return self.embed(artifacts)[:, 0]

    def embed(self, artifacts):
        found = [[float(artifact.mean()), 1.0] for artifact in artifacts]
        for artifact in artifacts:
            artifact[:] = 0
        return torch.tensor(found)


def test_embeddings_are_of_copies_too():
    judge = Draws(RewardConfig(kind="draws"), CPU)
    assert embeddings_of(judge, PICTURES)[:, 0].tolist() == [52, 52]
    assert int(PICTURES[0].max()) == 52


class Counts(PlainReward):
    """The number of calls since it has forgotten."""

    def __init__(self, config, device):
        super().__init__(config)
        self.calls = 0

    def forget(self):
        self.calls = 0

    def __call__(self, artifacts, prompts):
        self.calls += 1
        return [float(self.calls)] * len(artifacts)


def test_a_reward_in_its_own_process_forgets_there():
    reward = apart(Counts, RewardConfig(kind="counts", time_limit=60.0), CPU)
    assert [scores(reward, "a")[0] for _ in range(2)] == [1.0, 2.0]
    reward.forget()
    assert scores(reward, "a")[0] == 1.0


def test_a_reward_that_leaves_ends_no_run(caplog):
    assert told(scores(function("leaves"), "a", "b")) == ["nan", "nan"]
    assert "raised SystemExit('no judge here') on 2 samples" in caplog.text


def test_a_reward_that_ends_its_process_ends_no_run(caplog):
    assert told(scores(function("ends"), "a", "b")) == ["nan", "nan"]
    assert "raised SystemExit('os._exit(0)') on 2 samples" in caplog.text


# ---- in a process of its own ---------------------------------------------------------------------


def test_an_endless_call_is_ended_and_masks_its_sample_alone(caplog):
    caplog.set_level(logging.WARNING)
    assert told(scores(obeyed(2.0), "give 5", "stuck")) == [5.0, "nan"]
    (line,) = caplog.messages
    assert line == "reward obeys took longer than time_limit = 2 s on prompt 1 'stuck'; masked"


@pytest.mark.slow
def test_whatever_a_sample_does_to_the_process_the_others_are_scored(caplog):
    caplog.set_level(logging.WARNING)
    reward = obeyed(4.0)
    texts = ["give 1", "die", "exit", "raise", "abstain", "stuck", "give 6"]
    assert told(scores(reward, *texts)) == [1.0, "nan", "nan", "nan", ABSTAINED, "nan", 6.0]
    assert [line.split(" on prompt")[0] for line in caplog.messages] == [
        "reward obeys ended its process (exit code 3)",
        "reward obeys raised SystemExit('os._exit(3)')",
        "reward obeys raised ValueError('cannot be read')",
        "reward obeys took longer than time_limit = 4 s",
    ]


@pytest.mark.slow
def test_a_judge_that_is_away_costs_a_few_limits_and_not_one_a_sample(caplog):
    begin = time.monotonic()
    found = scores(obeyed(1.0), *["sleep 60"] * 12)
    assert told(found) == ["nan"] * 12 and time.monotonic() - begin < 60
    assert "took longer than time_limit = 1 s on 3 samples" in caplog.text
    assert "was not asked again, after others had taken too long, on 9 samples" in caplog.text


def test_a_slow_call_within_its_limit_is_progress():
    reward, silences, over = obeyed(60.0), [], threading.Event()
    assert scores(reward, "give 1") == [1.0]  # it is there

    def listen():
        while not over.wait(0.05):
            silences.append(time.monotonic() - watchdog._last)

    listener = threading.Thread(target=listen)
    watchdog.beat()
    listener.start()
    assert scores(reward, "sleep 4") == [4.0]
    over.set()
    listener.join()
    assert max(silences) < 3


@pytest.mark.slow
def test_a_process_ends_with_its_run_also_where_it_is_stuck():
    script = """
        import os, sys
        from tests.rewards.test_apart import obeyed, scores
        reward = obeyed(600.0)
        scores(reward, "give 1")
        print(reward._child.pid, flush=True)
        scores(reward, "stuck")
    """
    run = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    pid = run.stdout.readline().strip()
    time.sleep(0.5)
    assert Path(f"/proc/{pid}").exists()
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_until(lambda: not _runs(pid), "the process of the reward has ended")


def _runs(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_cannot_run_apart_is_refused_with_its_own_error():
    reward = apart(FunctionReward, FunctionRewardConfig(path="no_such:f", time_limit=5.0), CPU)
    with pytest.raises(RewardError, match="path = 'no_such:f' cannot be imported"):
        reward.check([])


@pytest.mark.slow
def test_a_comparison_without_an_end_does_not_hang_math_verify(caplog):
    reward = apart(MathVerify, MathVerifyConfig(time_limit=8.0), CPU)
    prompts = [Prompt(number, "", {"answer": "4"}) for number in range(3)]
    reward.check(prompts)
    with pytest.raises(RewardError, match="prompt 9 '' has answer = null"):
        reward.check([Prompt(9, "", {"answer": None})])
    texts = ["4", "$10^{10^{10^{10}}}$", "4.0"]
    begin = time.monotonic()
    found = rewards_of(reward, [Completion(f"<answer>{t}</answer>") for t in texts], prompts)
    assert (found[0], found[2]) == (1.0, 1.0) and found[1] != 1.0
    assert time.monotonic() - begin < 120


def test_math_verify_has_a_limit_and_a_limit_is_above_zero():
    assert MathVerifyConfig().time_limit == 30.0
    with pytest.raises(ValueError, match="greater than 0"):
        config("obeys", time_limit=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["", ", time_limit=100.0"])
def test_a_slow_reward_does_not_count_as_hanging(tmp_path, limit):
    """Neither the rank that waits for its judge nor the one that waits for this rank."""
    rewards = f'[{{kind="function", path="{ME}:slow_on_rank_0"{limit}}}]'
    settings = [f"rewards={rewards}", "iterations=1", "evaluation.every=0"]
    start = starts.train(tmp_path, 2, [*settings, "limits.hang_seconds=10"])
    assert start.wait() == [0, 0], start.text()
    assert len(records(tmp_path / "run")) == 1
