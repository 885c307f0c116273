"""Rewards that run out of memory, or whose GPU is gone: no fault of the samples."""

from __future__ import annotations

import logging

import pytest
import torch

from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.rewards.calls import rewards_of
from adrpo_scale.rewards.function import FunctionReward, FunctionRewardConfig

ME = "tests.rewards.test_memory"
PROMPTS = [Prompt(i, f"w{i}") for i in range(16)]
COMPLETIONS = [Completion(prompt.text, (i,), False) for i, prompt in enumerate(PROMPTS)]
ASKED: list[int] = []


def fits_four(completions, prompts):
    ASKED.append(len(prompts))
    if len(prompts) > 4:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    return [float(prompt.id) for prompt in prompts]


def fits_none(completions, prompts):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


def gpu_is_gone(completions, prompts):
    raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def scored(name):
    reward = FunctionReward(FunctionRewardConfig(path=f"{ME}:{name}"), torch.device("cpu"))
    return rewards_of(reward, COMPLETIONS, PROMPTS)


def test_too_many_samples_at_once_are_asked_in_halves_and_said_once(caplog):
    ASKED.clear()
    with caplog.at_level(logging.WARNING):
        first, second = scored("fits_four"), scored("fits_four")
    assert first.tolist() == second.tolist() == [float(prompt.id) for prompt in PROMPTS]
    assert ASKED == 2 * [16, 8, 4, 4, 8, 4, 4]  # not seventeen calls, one for each sample
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "reward function ran out of memory on 16 samples" in told[0]
    assert "domain.rollout_chunk=8" in told[0] and "on 8 samples" in told[1]


@pytest.mark.parametrize(
    ("name", "kind"), [("fits_none", "OutOfMemoryError"), ("gpu_is_gone", "AcceleratorError")]
)
def test_one_sample_that_does_not_fit_and_a_dead_gpu_end_the_run_and_mask_nothing(name, kind):
    with pytest.raises(getattr(torch, kind)):
        scored(name)
