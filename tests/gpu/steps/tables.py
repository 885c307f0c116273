"""Which steps there are, in the order of their worth, and how long each may take.

A step is imported by the process that runs it, so that one that cannot be imported fails alone.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from tests.gpu.steps.base import Case


@dataclass(frozen=True)
class Step:
    """place: `module:function` of this folder. arguments: further ones of the function. seconds:
    its limit. alone: it measures time or fills the GPU, so nothing runs beside it."""

    name: str
    title: str
    place: str
    seconds: float
    arguments: tuple[str, ...] = ()
    alone: bool = False

    def run(self, case: Case) -> None:
        module, _, function = self.place.partition(":")
        getattr(importlib.import_module(f"tests.gpu.steps.{module}"), function)(
            case, *self.arguments
        )


ONE_GPU = (
    Step("environment", "the GPU, its driver and two rates", "machine:environment", 60, alone=True),
    Step("parity_image", "the same rows on CPU and GPU", "parity:run", 120, ("image",)),
    Step("parity_text", "the same rows on CPU and GPU", "parity:run", 120, ("text",)),
    Step("parity_audio", "the same rows on CPU and GPU", "parity:run", 120, ("audio",)),
    Step("resume_image", "bit-exact resume in bf16", "resume:run", 150, ("image",)),
    Step("resume_text", "bit-exact resume in bf16", "resume:run", 150, ("text",)),
    Step("resume_audio", "bit-exact resume in bf16", "resume:run", 150, ("audio",)),
    Step("graphs_text", "CUDA graphs draw the same tokens", "graphs:run", 120, ("text",)),
    Step("graphs_audio", "CUDA graphs draw the same tokens", "graphs:run", 120, ("audio",)),
    Step(
        "resume_average",
        "the same with a moving average as the reference",
        "resume:run",
        150,
        ("image", "reference.kind=ema", "reference.decay=0.8"),
    ),
    Step(
        "resume_snapshot",
        "the same with a third model, a snapshot",
        "resume:run",
        150,
        ("text", "reference.kind=snapshot", "reference.every=1"),
    ),
    Step("staging", "a background save while training goes on", "staging:run", 100),
    Step("zero3", "ZeRO-3 in one process equals FSDP2", "zero3:run", 150),
    Step("nccl", "an NCCL group of one rank, FSDP2 over it, its end", "nccl:run", 120),
    Step("nccl_raise", "an exception beside a live NCCL group", "nccl:raising", 90),
    Step("two_processes", "two processes share the GPU over gloo", "sharing:run", 120),
    Step("out_of_memory", "what a trial says without memory", "memory:run", 120),
    Step("preflight", "the command preflight on this machine", "machine:preflight", 90),
    Step("sd3_memory", "the parts of SD3's rollout peak", "sd3_memory:run", 90),
    Step("omni_model", "the 7B thinker's files, hashed, and its plan", "shapes:omni_model", 140),
    Step("qwen3_decoding", "Qwen3-0.6B's shape: a token", "shapes:qwen3_decoding", 80, alone=True),
    Step("qwen3_rows", "Qwen3-0.6B's shape: rows a pass", "shapes:qwen3_rows", 90, alone=True),
    Step("sd3", "SD3-medium's shape in 44.7 GiB", "shapes:sd3", 90, alone=True),
    Step("omni", "the 7B thinker's shape in 44.7 GiB", "shapes:omni", 150, alone=True),
    Step("omni_graph", "the same by CUDA graphs", "shapes:omni_graph", 150, alone=True),
    Step("qwen3", "Qwen3-0.6B's shape: two iterations", "shapes:qwen3", 150, alone=True),
    Step("qwen3_graph", "the same by CUDA graphs", "shapes:qwen3_graph", 150, alone=True),
    Step("dice", "the dice demo, whole", "dice:run", 150, alone=True),
    Step("pytest", "tests/gpu as pytest runs it", "machine:pytest", 120, alone=True),
)

TWO_GPUS = (
    Step("exchange", "rows, gradients and objects between two ranks", "two:exchange", 60),
    Step("fsdp2", "FSDP2 `all` on two ranks equals one", "two:sharded", 120, ("all",)),
    Step("hsdp", "a mesh of 2 x 1 equals one rank", "two:sharded", 120, ("mesh",)),
    Step("zero3", "ZeRO-3 on two ranks equals one", "two:sharded", 120, ("zero3",)),
    Step("raise", "an exception on rank 1 ends both, said", "two:raises", 150),
    Step("kill", "SIGKILL of rank 1 asks for a requeue", "two:killed", 150),
    Step("preflight", "the command preflight over both", "two:preflight", 120),
)

TABLES = {"one_gpu": ONE_GPU, "two_gpus": TWO_GPUS}
