"""Runs with settings that few tests on a CPU have and most GPUs need: half precision, all weights,
pairs, the memory of the host, two nodes. Without a fault, with a CPU's numbers."""

from __future__ import annotations

import pytest

from tests.pretend_cuda.test_runs import assert_same_numbers, on
from tests.support.pretended_runs import trained_looking_at_every_token, trained_on_nodes_of_two
from tests.support.tiny import records

pytestmark = pytest.mark.slow
BFLOAT16 = "engine.dtype=bfloat16"
ZERO3 = ("engine.name=zero3", "engine.shard=all")
OFFLOADED = ("engine.offload_optimizer=true", "engine.offload_parameters=true")
DPO = "algorithm={name='dpo',beta=2.0}"
ALL_WEIGHTS = ("domain.train=full", "domain.lora=null")


def assert_no_fault(task, world, settings, tmp_path, starts=1, of=trained_looking_at_every_token):
    """Each start makes an iteration."""
    run, other = tmp_path / "device" / "run", tmp_path / "cpu" / "run"
    for iterations in range(1, starts + 1):
        for seen in on("cuda", task, world, run, *settings, f"iterations={iterations}", of=of):
            assert seen["problems"] == []
    on("cpu", task, world, other, *settings, f"iterations={starts}", of=of)
    assert len(records(run)) == starts
    assert_same_numbers(run, other)


def test_all_weights_of_pictures_by_dpo_in_bfloat16(tmp_path):
    assert_no_fault("image", 1, (*ALL_WEIGHTS, DPO, BFLOAT16), tmp_path)


def test_zero3_in_the_memory_of_the_host_in_bfloat16_resumes(tmp_path):
    assert_no_fault("text", 1, (*ZERO3, *OFFLOADED, BFLOAT16), tmp_path, starts=2)


@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_two_nodes_of_two_ranks_that_shard_inside_a_node(engine, tmp_path):
    settings = (f"engine.name={engine}", "engine.shard=node", "evaluation.every=0")
    assert_no_fault("text", 4, settings, tmp_path, of=trained_on_nodes_of_two)
