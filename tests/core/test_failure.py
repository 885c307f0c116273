"""Errors told apart, and told: by whom, how often and how."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as td

from adrpo_scale.core import failure, watchdog
from adrpo_scale.core.errors import ConfigError, NodeError, OutOfMemory, agreed, exit_code

GLOO = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [::1]:9"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        td.DistNetworkError("Failed to recv, got 0 bytes."),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        # As torch 2.15's backend over NCCL raises them, which have no class of their own.
        RuntimeError(
            "NCCL AllReduce failed: remote process exited or there was a network error, "
            "NCCL version 2.30.7"
        ),
        RuntimeError("NCCL communicator was aborted after a previous error"),
        RuntimeError("NCCL operation timed out"),
        RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:3690, unhandled system error"),
    ],
)
def test_a_lost_process_is_known_by_its_error(error):
    assert failure.is_lost(error) and not failure.is_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError(GLOO),
        RuntimeError("ProcessGroupNCCL is bound to device cuda:1"),
        RuntimeError("NCCL error: invalid usage, Duplicate GPU detected : rank 1 and rank 0"),
    ],
)
def test_a_fault_of_ours_is_no_lost_process(error):
    assert not failure.is_lost(error) and not failure.is_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("NCCL error: unhandled cuda error, Cuda failure 2 'out of memory'"),
    ],
)
def test_memory_that_ran_out_is_no_lost_process(error):
    assert failure.is_memory(error) and not failure.is_lost(error)


def test_an_agreed_error_is_told_by_rank_0_and_another_by_each(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    failure.tell(ConfigError("as on every rank"))
    failure.tell(agreed(NodeError("as on every rank")))
    assert capsys.readouterr().err == ""
    error = NodeError("of this rank")
    failure.tell(error)
    failure.tell(error)
    told = capsys.readouterr().err
    assert told.startswith("[rank 1 on ") and told.endswith("] error: of this rank\n")
    assert told.count("of this rank") == 1


def test_one_process_tells_an_error_as_it_is(capsys):
    failure.tell(ConfigError("steps = 0"))
    assert capsys.readouterr().err == "error: steps = 0\n"


def test_an_exception_has_its_rank_phase_and_traceback(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    try:
        with watchdog.phase("update"), watchdog.phase("save"):
            raise KeyError("weight")
    except KeyError as error:
        failure.tell(error)
    told = capsys.readouterr().err
    assert told.startswith("[rank 1 on ") and "an exception in save:\nTraceback" in told
    assert told.endswith("KeyError: 'weight'\n")


def test_a_phase_that_ended_well_is_not_the_one_that_failed():
    with pytest.raises(KeyError), watchdog.phase("rollout"):
        raise KeyError
    assert watchdog.failed_in() == "rollout"
    with watchdog.phase("update"):
        assert watchdog.failed_in() == "update"


def test_memory_that_runs_out_ends_a_run_the_second_time():
    assert exit_code(OutOfMemory("the first time")) == 85
    assert exit_code(OutOfMemory("again", is_repeated=True)) == 2
