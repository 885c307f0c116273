"""The real command in a prepared process: `python -m tests.gpu.steps.command WHAT[=VALUE] words`.

stop=N: SIGTERM before optimizer step N. share: gloo carries the tensors of one GPU that two ranks
share. cap=BYTES: as much of the GPU and no more. lack=N: asks for too much in backward N. raise=N,
kill=N: rank 1 raises, or is killed, in backward N. mesh: FSDP2's units over a mesh of (world, 1).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from tests.support.faults import SignalAt, watch_calls

STEP = "adrpo_scale.engines.fsdp2:Fsdp2Engine.step"
BACKWARD = "adrpo_scale.engines.fsdp2:Fsdp2Engine.backward"
PLANTED = "planted on rank 1"


def stop(value: str) -> None:
    SignalAt(STEP, int(value), (signal.SIGTERM,))(0)


def cap(value: str) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(int(value) / total)


def lack(value: str) -> None:
    def ask(number: int) -> None:
        if number == int(value):
            torch.empty(2**52, dtype=torch.uint8)

    watch_calls(BACKWARD, ask)


def raise_(value: str) -> None:
    def fail(number: int) -> None:
        if number == int(value) and os.environ.get("RANK") == "1":
            raise RuntimeError(PLANTED)

    watch_calls(BACKWARD, fail)


def kill(value: str) -> None:
    def die(number: int) -> None:
        if number == int(value) and os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    watch_calls(BACKWARD, die)


def mesh(value: str) -> None:
    from adrpo_scale.engines import fsdp2

    def build(shard: Any, device: str) -> Any:
        names = ("replicate", "shard")
        return init_device_mesh(device, (td.get_world_size(), 1), mesh_dim_names=names)

    fsdp2.build_mesh = build


# ---- two processes on one GPU --------------------------------------------------------------------


def share(value: str) -> None:
    """NCCL refuses two ranks on one GPU. gloo takes their place; it has no kernels for some
    collectives of CUDA tensors, so those travel through host memory."""
    real = td.init_process_group

    def init(backend: str, *args: Any, **more: Any) -> Any:
        more.pop("device_id", None)  # bound groups are split, which gloo cannot
        return real(backend.replace("cuda:nccl", "cuda:gloo"), *args, **more)

    td.init_process_group = init
    for name, outputs in COLLECTIVES.items():
        setattr(td, name, staged(getattr(td, name), outputs))


# Collective → the places of its output and its input; one that works in place has one.
COLLECTIVES = {
    "all_reduce": (0,),
    "all_to_all_single": (0, 1),
    "all_gather_into_tensor": (0, 1),
    "reduce_scatter_tensor": (0, 1),
}
NAMES = {
    "all_reduce": ("tensor",),
    "all_to_all_single": ("output", "input"),
    "all_gather_into_tensor": ("output_tensor", "input_tensor"),
    "reduce_scatter_tensor": ("output", "input"),
}


class Done:
    """The work of a collective that has ended."""

    def wait(self, *args: Any) -> bool:
        return True

    def is_completed(self) -> bool:
        return True


def staged(collective: Callable[..., Any], places: tuple[int, ...]) -> Callable[..., Any]:
    """The collective, with CUDA tensors copied to the host and back."""
    names = NAMES[collective.__name__]

    def call(*args: Any, **more: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **more}
        rest = args[len(names) :]
        tensors: dict[str, Tensor] = {name: given.pop(name) for name in names}
        if not tensors[names[0]].is_cuda:
            return collective(*tensors.values(), *rest, **given)
        hosts = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        is_asynchronous = given.pop("async_op", False)
        op, divisor = given.get("op"), 1
        if op == td.ReduceOp.AVG:  # gloo has no average
            given["op"], divisor = td.ReduceOp.SUM, td.get_world_size(given.get("group"))
        collective(*hosts.values(), *rest, **given)
        tensors[names[0]].copy_(hosts[names[0]] / divisor if divisor > 1 else hosts[names[0]])
        return Done() if is_asynchronous else None

    return call


PREPARATIONS = {
    **{"stop": stop, "cap": cap, "lack": lack, "raise": raise_, "kill": kill},
    **{"mesh": mesh, "share": share},
}


def main() -> None:
    kind, _, value = sys.argv[1].partition("=")
    PREPARATIONS[kind](value)
    sys.argv = ["adrpo-scale", *sys.argv[2:]]
    from adrpo_scale.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
