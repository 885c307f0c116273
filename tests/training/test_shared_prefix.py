"""Shared prompts in whole iterations: the plain loop, on every engine and number of processes."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.training.batches import by_prompt
from tests.support.closeness import assert_adam_near, drifted
from tests.support.ranks import run_ranks
from tests.training.test_text_training import RATE, TERMS, UPDATES, VARIANTS, plain_loop, trains

SHARED = ["domain.shared_prefix=true", "optimizer.micro_batch=8"]


QUICK = [("fsdp2-1", "full", 1), ("fsdp2-all", "lora", 2), ("zero3-all", "full", 2)]
EVERY = [(v, kind, world) for v in VARIANTS for kind in ("lora", "full") for world in (1, 2, 4)]


@pytest.mark.parametrize(
    ("variant", "kind", "world"),
    [
        *QUICK,
        *(pytest.param(*case, marks=pytest.mark.slow) for case in EVERY if case not in QUICK),
    ],
)
def test_an_iteration_equals_the_plain_loop(variant, kind, world):
    folder, loss, norm, parameters, moments = plain_loop(kind)
    by_rank = run_ranks(trains, world, str(folder), variant, kind, SHARED)
    record, found = by_rank[0]
    assert record["loss"] == drifted(loss, UPDATES, TERMS)
    assert record["grad_norm"] == drifted(norm, UPDATES)
    assert_adam_near(found, parameters, moments, RATE, UPDATES)


def test_units_of_a_prompt_are_side_by_side_and_stay_on_their_rank():
    prompt_ids = torch.tensor([7, 8, 7, 8, 7, 9, 9, 7])
    units = torch.tensor([[5], [0], [1], [2], [3], [4], [6], [7]])
    found = by_prompt(units, prompt_ids, 2)
    assert found[:, 0].tolist() == [5, 0, 2, 1, 3, 4, 7, 6]
    pairs = torch.tensor([[0, 2], [1, 3], [4, 7], [5, 6]])
    assert by_prompt(pairs, prompt_ids, 1).tolist() == [[0, 2], [4, 7], [1, 3], [5, 6]]
