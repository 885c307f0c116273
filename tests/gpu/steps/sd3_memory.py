"""The parts of SD3's rollout peak: a pass of the transformer and a decode by the VAE, each against
what `plan` counts of it, and which operators take memory beyond their results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from torch.backends import cudnn
from torch.utils._python_dispatch import TorchDispatchMode

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.measure import Live
from adrpo_scale.cluster.plan.workload import workload_of
from adrpo_scale.engines.adapters import add_adapters
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.engines.workload import Call, Workload
from adrpo_scale.run.config import RunConfig
from benchmarks.sd3_medium import MEDIUM
from tests.gpu.steps.base import Case
from tests.gpu.test_plan_memory import sd3_config

LARGE = 2**26  # bytes beyond an operator's results from which on it is listed
# Name → (cuDNN is used, it tries algorithms, it may use TF32, weights lie in channels_last).
VARIANTS = {
    "as the run": (True, False, True, False),
    "benchmark": (True, True, True, False),
    "without TF32": (True, False, False, False),
    "channels_last": (True, False, True, True),
    "without cuDNN": (False, False, True, False),
}


class Beyond(TorchDispatchMode):
    """Bytes that each call of an operator takes beyond its results, by operator and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        torch.cuda.reset_peak_memory_stats()
        result = func(*args, **(kwargs or {}))
        more = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        if more > LARGE:
            shapes = [list(a.shape) for a in args if isinstance(a, torch.Tensor)]
            name = f"{func} {shapes}"
            self.found[name] = max(more, self.found.get(name, 0))
        return result


@torch.no_grad()
def peak_of(run: Callable[[], object]) -> tuple[int, float]:
    """(bytes at the peak beyond those held before, seconds) of a call. Without a GPU, the bytes of
    live tensors."""
    begin = time.perf_counter()
    if not torch.cuda.is_available():
        with Live() as live:
            run()
        return live.peak, time.perf_counter() - begin
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, time.perf_counter() - begin


@contextmanager
def _cudnn(enabled: bool, benchmark: bool, tf32: bool) -> Iterator[None]:
    before = cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32
    cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32 = enabled, benchmark, tf32
    try:
        yield
    finally:
        cudnn.enabled, cudnn.benchmark, cudnn.allow_tf32 = before


def _config(case: Case) -> RunConfig:
    """Files of one layer, and a config.json of all of them: no weights are read."""
    config = sd3_config(case.folder, 1, 1, case.size((128, 256, 512, 512), (32,) * 4))
    place = case.folder / "pipeline" / "transformer" / "config.json"
    layers = case.size(MEDIUM["num_layers"], 1)
    place.write_text(json.dumps(json.loads(place.read_text()) | {"num_layers": layers}))
    if case.is_dry:
        small = {"height": 64, "width": 64, "max_sequence_length": 16}
        config = config.model_copy(update={"domain": config.domain.model_copy(update=small)})
    return config


def run(case: Case) -> None:
    config = _config(case)
    work = workload_of(config)
    vae = next(model for model in work.frozen if model.name == "VAE")
    with torch.device(case.device):
        model: nn.Module = vae.spec.build().requires_grad_(False).eval().to(vae.dtype)
        _decode(case, model, vae.call, vae.rows)
    del model
    planned = rehearsal.frozen_cost(config, vae, vae.rows).at(vae.rows).peak
    case.note(decode_planned=planned)
    _transformer(case, config, work)
    decode = case.findings.figures["decode"]
    most, run = decode["without TF32"]["bytes"], decode["as the run"]["bytes"]
    near = abs(planned / most - 1) < 0.1
    case.check("the decode without TF32 is within a tenth of plan", near, most)
    # With TF32 cuDNN has kernels more, of which some copy nothing.
    case.check("the decode of the run is no larger than plan", run < 1.1 * planned, run)


def _decode(case: Case, model: nn.Module, decode: Call, rows: int) -> None:
    found: dict[str, Any] = {}
    for name, (enabled, benchmark, tf32, is_last) in VARIANTS.items():
        model.to(memory_format=torch.channels_last if is_last else torch.contiguous_format)
        with _cudnn(enabled, benchmark, tf32):
            try:
                tried = [peak_of(lambda: decode(model, rows)) for _ in range(2)]
            except RuntimeError as error:
                found[name] = f"{type(error).__name__}: {str(error)[:200]}"
                continue
            finally:
                case.note(decode=found)
            found[name] = {"first_bytes": tried[0][0], "bytes": tried[1][0]}
            found[name]["seconds"] = tried[1][1]
            if torch.cuda.is_available() and name in ("as the run", "channels_last"):
                with torch.no_grad(), suppress(RuntimeError), Beyond() as beyond:
                    decode(model, rows)
                found[name]["beyond_results"] = beyond.found
        case.note(decode=found)


def _transformer(case: Case, config: RunConfig, work: Workload) -> None:
    rows, step = config.domain.rollout_chunk, work.rollout[0].call
    with torch.device(case.device):
        policy = work.spec.build()
        if work.spec.lora is not None:
            add_adapters(policy, work.spec.lora, work.spec.lora_targets)
        policy.requires_grad_(False).eval().to_empty(device=case.device)  # adapters: from meta
        policy.to(DTYPES[config.engine.dtype])
        tried = [peak_of(lambda: step(policy, rows)) for _ in range(2)]
    case.note(transformer={"first_bytes": tried[0][0], "bytes": tried[1][0]})
    planned = rehearsal.rollout_step(config, work, 0, rows).at(rows).peak
    case.note(transformer_planned=planned, transformer_rows=rows)
    near = abs(planned / tried[1][0] - 1) < 0.1
    case.check("the transformer's pass is within a tenth of plan", near, tried[1][0])
