"""A run that is killed between the updates of an iteration, which share their draws."""

from __future__ import annotations

import pytest

from tests.run.test_reference_resume import train
from tests.run.test_resume import ZERO3
from tests.support import starts
from tests.support.faults import DieAt
from tests.support.tiny import FULL

AWM = [
    "algorithm={name='awm', scale='group_std'}",
    *("optimizer.updates=2", "optimizer.draws_per_sample=2"),
    *("iterations=3", "prompts.per_iteration=2", "domain.rollout.steps=2"),
]
UPDATE = "adrpo_scale.training.trainer:Trainer._update"


@pytest.mark.parametrize(
    "settings",
    [[], pytest.param([*FULL, *ZERO3], marks=pytest.mark.slow)],
    ids=["lora-fsdp2", "full-zero3"],
)
def test_a_run_killed_between_two_updates_goes_on_to_the_bit(tmp_path, settings):
    """Killed in iteration 2, after its first optimizer step: call 4 is its second."""
    run = tmp_path / "pieces" / "run"
    at = DieAt(UPDATE, 4, run / "checkpoints" / "step-000001")
    train(tmp_path / "pieces", 1, *AWM, *settings, prepare=at)
    train(tmp_path / "pieces", 1, *AWM, *settings)
    assert starts.records_of(run)[-1]["resumed_from"] == 1
    whole = train(tmp_path / "whole", 1, *AWM, *settings)
    assert starts.differences(run, whole) == []
