"""NCCL with one rank: what two ranks need more is in `two`. FSDP2's real units gather, reduce and
free over it, on the GPU's real streams; the group is left in time, also by an exception."""

from __future__ import annotations

import sys
import time
from typing import Any
from unittest import mock

import torch
import torch.distributed as td
from torch.distributed.device_mesh import init_device_mesh

from adrpo_scale.core import dist
from adrpo_scale.engines.deepspeed_start import single_process_group
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS, start
from tests.gpu.steps.zero3 import _off

PLANTED = "planted beside a live group"


def run(case: Case) -> None:
    begin = time.perf_counter()
    single_process_group(case.device)
    case.note(seconds_to_join=time.perf_counter() - begin, backend=str(td.get_backend()))
    _collectives(case)
    _sharded_units(case)
    td.barrier()
    begin = time.perf_counter()
    td.destroy_process_group()
    seconds = time.perf_counter() - begin
    case.check("the group is left within 5 s", seconds < 5, seconds)


def _collectives(case: Case) -> None:
    """Each kind that a run sends over the device, in its dtype."""
    device = case.device
    rows = torch.arange(12, device=device).view(4, 3)
    there = torch.empty_like(rows)
    td.all_to_all_single(there, rows, [4], [4])
    good = {"int64 all_to_all_single": torch.equal(there, rows)}
    for dtype in (torch.float32, torch.float64):
        values = torch.randn(1000, device=device, dtype=dtype)
        total = values.clone()
        td.all_reduce(total)
        good[f"{dtype} all_reduce"] = torch.equal(total, values)
    values = torch.randn(1000, device=device, dtype=torch.bfloat16)
    whole = torch.empty_like(values)
    td.all_gather_into_tensor(whole, values)
    good["bfloat16 all_gather"] = torch.equal(whole, values)
    part, values = torch.empty(1000, device=device), torch.randn(1000, device=device)
    op = td.ReduceOp.AVG if device == "cuda" else td.ReduceOp.SUM
    td.reduce_scatter_tensor(part, values, op=op)
    good["float32 reduce_scatter"] = torch.equal(part, values)
    state = torch.randint(0, 255, (1000,), device=device, dtype=torch.uint8)
    sent = state.clone()
    td.broadcast(sent, 0)
    good["uint8 broadcast"] = torch.equal(sent, state)
    objects: list[Any] = [None]
    td.all_gather_object(objects, {"over": "gloo"})
    good["objects"] = objects == [{"over": "gloo"}]
    for name, is_good in good.items():
        case.check(f"{name} returns what was sent", is_good, is_good)


def _sharded_units(case: Case) -> None:
    """Two iterations over FSDP2's units on a mesh of one, against the same without a mesh."""

    def mesh(shard: Any, device: str) -> Any:
        return init_device_mesh(device, (1,), mesh_dim_names=("shard",))

    plain = _iterations(case, "plain")
    with mock.patch("adrpo_scale.engines.fsdp2.build_mesh", mesh):
        sharded = _iterations(case, "sharded")
    for number, (a, b) in enumerate(zip(plain, sharded, strict=True), 1):
        off = {key: _off(a[key], b[key]) for key in ("loss", "grad_norm", "reward")}
        good = max(off.values()) < 1e-3
        case.check(f"iteration {number} over units equals one without", good, off)


def _iterations(case: Case, name: str) -> list[dict[str, Any]]:
    settings = ["prompts.per_iteration=2", "domain.rollout.max_new_tokens=12", "evaluation.every=0"]
    settings.append(f"engine.device={case.device}")
    folder = case.folder / name
    folder.mkdir()
    trainer = build_trainer(load_config(TASKS["text"], settings).config, folder)
    with trainer.log:
        return [trainer._iterate() for _ in range(2)]


# ---- an exception --------------------------------------------------------------------------------


def raising(case: Case) -> None:
    """A process with a live group raises: the error is on stderr and the process is gone."""
    words = ["tests.gpu.steps.nccl", case.device]
    running = start(words, case.folder / "output.txt")
    code = running.wait(case.seconds - 10)
    said = PLANTED in running.text
    stamp = next((w for w in running.text.split() if w.startswith("raised-at=")), "=nan")
    left = time.time() - float(stamp.partition("=")[2]) - (time.monotonic() - (running.ended or 0))
    case.note(exit_code=code, seconds_from_the_exception=left, output=running.tail)
    case.check("its exit code is that of an exception", code == 1, code)
    case.check("the message is on stderr", said, said)
    case.check("the process is gone within 10 s of it", left < 10, left)


def fails(device: str) -> None:
    single_process_group(device)
    with dist.process_group(device):
        values = torch.ones(1 << 20, device=device)
        for _ in range(10):
            td.all_reduce(values)
        print(f"raised-at={time.time()}", flush=True)
        raise RuntimeError(PLANTED)


if __name__ == "__main__":
    fails(sys.argv[1])
