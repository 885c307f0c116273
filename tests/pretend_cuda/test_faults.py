"""The tester, tested: faults of a device that no CPU run sees are caught where they are."""

from __future__ import annotations

import contextlib
import inspect
import textwrap

import numpy as np
import pytest
import torch
import torch.distributed as td
import torch.nn.functional as F
from torch import nn

from adrpo_scale.checkpoint.staging import Stage
from adrpo_scale.core.types import FlatRange
from adrpo_scale.domains import decoding
from tests.support.pretend_cuda import Fault, pretend_cuda
from tests.support.pretend_cuda.rules import HAS_KERNELS
from tests.support.tiny_text import tiny_config

CPU = torch.arange(4.0)


def here(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape or (4,), dtype=dtype, device="cuda")


def generator(device: str = "cpu") -> torch.Generator:
    return torch.Generator(device=device).manual_seed(0)


def pinned_copy() -> torch.Tensor:
    memory = torch.empty(4, pin_memory=True)
    memory.copy_(here(), non_blocking=True)
    return memory


def deterministic(act):
    def inside():
        torch.use_deterministic_algorithms(True)
        try:
            return act()
        finally:
            torch.use_deterministic_algorithms(False)

    return inside


def added_in_place():
    total = torch.zeros(())
    total += here().sum()


# kind → (what is done, what the message says)
FAULTS = {
    "a dropped .to(device)": (lambda: here() + CPU, "same device"),
    "an input left on the CPU": (lambda: nn.Embedding(4, 2).cuda()(CPU.long()), "same device"),
    "a module left on the CPU": (lambda: nn.Linear(4, 4)(here()), "same device"),
    "a tensor made without device=": (lambda: here().gather(0, torch.zeros(1).long()), "device"),
    "a device scalar in a CPU tensor": (lambda: CPU * here().sum(), "same device"),
    "a CPU total of device numbers": (added_in_place, "same device"),
    "two CPU scalars": (lambda: torch.addcmul(here(), CPU[0], CPU[1]), "same device"),
    "a CPU tensor by a device index": (lambda: CPU[here().long()], "indexed tensor on the CPU"),
    "CPU values into a device tensor": (
        lambda: here().index_put_((here().long(),), CPU),
        "values on the CPU",
    ),
    "a stack of two devices": (lambda: torch.stack([here().sum(), CPU.sum()]), "same device"),
    "two GPUs": (lambda: here() + here().to("cuda:1"), "cuda:0', 'cuda:1"),
    "a GPU that is not there": (lambda: here().to("cuda:2"), "invalid device ordinal"),
    ".data of a device tensor": (lambda: setattr(here(), "data", CPU), "CPU tensor"),
    "a product of integers": (lambda: here(2, 2).long() @ here(2, 2).long(), "not implemented"),
    "a convolution of integers": (
        lambda: F.conv1d(here(1, 1, 4).long(), here(1, 1, 2).long()),
        "not implemented",
    ),
    "numpy() of a device tensor": (lambda: here().numpy(), "to numpy"),
    "numpy.asarray of a device tensor": (lambda: np.asarray(here()), "to numpy"),
    "a kernel without a deterministic form": (
        deterministic(lambda: here().kthvalue(2)),
        "deterministic implementation",
    ),
    "a backward without a deterministic form": (
        deterministic(
            lambda: F.pad(here(1, 4).requires_grad_(), (1, 1), "reflect").sum().backward()
        ),
        "deterministic implementation",
    ),
    "pinned device memory": (lambda: here().pin_memory(), "pin"),
    "pinned memory asked of the device": (
        lambda: torch.empty(4, device="cuda", pin_memory=True),
        "pinned",
    ),
    "pinned memory read too early": (lambda: pinned_copy().sum(), "waited for"),
    "pinned memory read too early, as numpy": (lambda: pinned_copy().numpy(), "waited for"),
    "a CPU generator for a device draw": (
        lambda: torch.randn(4, device="cuda", generator=generator()),
        "'cuda' device type for generator",
    ),
    "a CPU generator for a device tensor": (
        lambda: here().uniform_(generator=generator()),
        "'cuda' device type for generator",
    ),
    "a device generator for a CPU draw": (
        lambda: torch.randn(4, generator=generator("cuda")),
        "'cpu' device type for generator",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_caught(kind):
    act, says = FAULTS[kind]
    with pytest.raises(Fault, match=says), pretend_cuda(devices=2):
        act()


@pytest.mark.skipif(not HAS_KERNELS, reason="this torch has no list of CUDA kernels")
def test_a_missing_kernel_is_caught():
    with pytest.raises(Fault, match="no CUDA kernel"), pretend_cuda():
        here().to_mkldnn()


def test_what_is_right_passes():
    with pretend_cuda(devices=2) as seen:
        weight = here(4, 4).requires_grad_()
        loss = (here() @ weight).relu().sum() * CPU[1] + 1
        loss.backward()
        assert str(weight.grad.device) == "cuda:0" and type(weight.grad) is type(weight.data)
        assert F.one_hot(here().long(), 4).device == torch.zeros_like(weight).device
        row = here(4, 4)
        row[torch.tensor([1])] = 2.0
        assert (row[row > 1].cpu().tolist(), row.tolist()[1]) == ([2.0] * 4, [2.0] * 4)
        assert torch.randn(4, device="cuda", generator=generator("cuda")).is_cuda
        streams = torch.cuda.Stream().synchronize, torch.cuda.Event().synchronize
        for wait in (torch.cuda.synchronize, *streams, here().sum().item):
            memory = pinned_copy()
            early = memory[1:].view(3)  # reads nothing
            wait()
            assert memory.sum() == 4 and early.sum() == 3
    assert not seen.problems and not torch.cuda.is_available()
    assert {what for what, _ in seen.syncs} == {
        *("index by a mask", "copy to the host", "tolist", "torch.cuda.synchronize"),
        *("Stream.synchronize", "Event.synchronize", "_local_scalar_dense"),
    }
    assert {what for what, _ in seen.copies} == {
        *("index_fill_ by a list", "device to pinned memory")
    }


def test_a_fault_that_other_code_catches_is_raised_at_the_end():
    def run():
        with pretend_cuda(), contextlib.suppress(RuntimeError):
            here() + CPU

    with pytest.raises(Fault, match="caught by other code"):
        run()


# ---- collectives ---------------------------------------------------------------------------------

COLLECTIVES = {
    "a CPU tensor over NCCL": (lambda: td.all_reduce(CPU.clone()), "no backend for cpu", "nccl"),
    "a device tensor over gloo": (lambda: td.all_reduce(here()), "no backend for cuda", "gloo"),
    "a wrong dtype over NCCL": (
        lambda: td.broadcast(here(dtype=torch.int16), src=0),
        "NCCL does not take torch.int16",
        "cpu:gloo,cuda:nccl",
    ),
    "a tensor of another GPU": (
        lambda: td.all_reduce(here().to("cuda:1")),
        "bound to cuda:0",
        "cpu:gloo,cuda:nccl",
    ),
    "two devices in one collective": (
        lambda: td.all_gather_into_tensor(torch.empty(4), here()),
        "CPU and CUDA tensors",
        "cpu:gloo,cuda:nccl",
    ),
    "a tensor with gaps": (
        lambda: td.all_reduce(here(4, 4)[:, 1]),
        "contiguous",
        "cpu:gloo,cuda:nccl",
    ),
    "a bitwise reduction": (
        lambda: td.all_reduce(here().int(), op=td.ReduceOp.BOR),
        "with NCCL",
        "cpu:gloo,cuda:nccl",
    ),
}


@pytest.fixture
def join():
    """Joins a group of this process alone."""

    def joined(backend, **options):
        td.init_process_group(backend, store=td.HashStore(), rank=0, world_size=1, **options)

    yield joined
    if td.is_initialized():
        td.destroy_process_group()


@pytest.mark.parametrize("kind", COLLECTIVES)
def test_a_fault_of_a_collective_is_caught(kind, join):
    act, says, backend = COLLECTIVES[kind]
    with pytest.raises(Fault, match=says), pretend_cuda(devices=2):
        join(backend)
        act()


def test_collectives_that_are_right_pass(join):
    with pretend_cuda() as seen:
        join("cpu:gloo,cuda:nccl", device_id=torch.device("cuda", 0))
        whole, rows = here(2, 4), here(2, 4).long()
        td.all_reduce(whole)
        td.all_to_all_single(torch.empty_like(rows), rows)
        td.all_reduce(CPU.clone())
    assert {(name, dtype) for name, dtype, _ in seen.collectives} == {
        ("c10d::allreduce_", "float32"),
        ("c10d::alltoall_base_", "int64"),
    }
    assert [name for name, _ in seen.over_gloo] == ["c10d::allreduce_"]


def test_a_group_that_binds_to_another_gpu_is_caught(join, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(Fault, match="binds to cuda:1"), pretend_cuda(devices=2):
        join("cpu:gloo,cuda:nccl")


# ---- in the package's own code -------------------------------------------------------------------


def planted(monkeypatch, owner, name, old, new, occurrence=0):
    """The function of a module or class with the n-th `old` of its source replaced."""
    parts = textwrap.dedent(inspect.getsource(getattr(owner, name))).split(old)
    changed = old.join(parts[: occurrence + 1]) + new + old.join(parts[occurrence + 1 :])
    space = {**vars(inspect.getmodule(owner))}
    exec("from __future__ import annotations\n" + changed, space)
    monkeypatch.setattr(owner, name, space[name])


def generated():
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tiny_config()).eval().to("cuda")
    uniforms = torch.rand(3, 4, generator=generator()).to("cuda")
    sampling = decoding.SamplingConfig(max_new_tokens=4)
    return decoding.generate(model, [[5, 6], [7], [5, 6]], uniforms, sampling, [2], 0)


def places(name, old):
    return range(inspect.getsource(getattr(decoding, name)).count(old))


@pytest.mark.parametrize(
    ("name", "occurrence"),
    [(n, k) for n in ("generate", "prefill") for k in places(n, ", device=device")],
)
def test_any_tensor_of_the_decoding_made_without_its_device_is_caught(
    name, occurrence, monkeypatch
):
    """As a fault; an index on the CPU, which CUDA takes, as a copy for every token."""
    planted(monkeypatch, decoding, name, ", device=device", "", occurrence)
    try:
        with pretend_cuda() as seen:
            generated()
    except Fault:
        return
    assert any("index on the CPU" in what for what, _ in seen.copies)


def test_the_decoding_as_it_is_passes():
    with pretend_cuda():
        assert generated().tokens_NT.is_cuda


def test_a_stage_that_does_not_wait_for_its_copies_is_caught(monkeypatch):
    def staged():
        return Stage().copy({"policy": {"a": (FlatRange((4,), 0, 4), here())}})[0].values.sum()

    with pretend_cuda():
        assert staged() == 4
    planted(monkeypatch, Stage, "copy", "torch.cuda.synchronize()", "pass")
    with pytest.raises(Fault, match="waited for"), pretend_cuda():
        staged()
