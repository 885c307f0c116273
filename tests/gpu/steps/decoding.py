"""How a token is decoded, eagerly and by CUDA graphs: kernels, host time, when the GPU is busy;
and an experiment, merged adapters. An experiment that fails is noted, no more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from adrpo_scale.core.types import DrawKey
from adrpo_scale.training.rollout import sample_block
from adrpo_scale.training.trainer import Trainer
from tests.gpu.steps.base import Case

ATTENTION = ("flash", "fmha", "efficient", "sdpa", "attention")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _sampled(trainer: Trainer, tokens: int, rows: int) -> float:
    """Seconds of a rollout of `rows` samples with `tokens` tokens, by the domain's own code."""
    domain = trainer.domain
    whole = domain.config
    rollout = whole.rollout.model_copy(update={"max_new_tokens": tokens})
    prompts = trainer.stream.at(0)
    group = max(1, rows // len(prompts))
    domain.config = whole.model_copy(update={"rollout": rollout})
    try:
        with trainer.engine.sampling(trainer.policy):
            _wait()
            begin = time.perf_counter()
            key = DrawKey(trainer.seed, 5)
            sample_block(domain, trainer.policy, prompts, group, key, rows)
            _wait()
            return time.perf_counter() - begin
    finally:
        domain.config = whole


def _per_token(trainer: Trainer, few: int, many: int, rows: int) -> float:
    """Milliseconds a token, prefill excluded: from two lengths, the faster of two runs each."""
    short, long = (min(_sampled(trainer, t, rows) for _ in range(2)) for t in (few, many))
    return 1e3 * (long - short) / (many - few)


def profiled(case: Case, trainer: Trainer) -> None:
    """Notes how a text domain's policy decodes eagerly, each figure as it is there."""
    decoded_by(trainer, "eager")
    few, many, rows = case.size((4, 12, 32), (2, 6, 4))
    case.note(first_rollout_seconds=_sampled(trainer, few, rows))
    counts, busy = zip(*(_kernels(trainer, t, rows) for t in (few, many)), strict=True)
    more = counts[1] - counts[0]
    busy_ms = (busy[1] - busy[0]) / (many - few)
    names = [n for n, _ in counts[1].most_common() if any(a in n.lower() for a in ATTENTION)]
    case.note(
        kernels_a_token=more.total() / (many - few),
        gpu_busy_ms_a_token=busy_ms,
        attention_kernels=[name[:90] for name in names[:6]],
        most_launched={n[:70]: c / (many - few) for n, c in more.most_common(12)},
    )
    eager = _per_token(trainer, *case.size((8, 32), (2, 6)), rows)
    case.note(ms_a_token=eager, gpu_busy_share=busy_ms / eager if eager > 0 else None)


def _kernels(trainer: Trainer, tokens: int, rows: int) -> tuple[Counter[str], float]:
    """(kernels launched, by name; milliseconds the GPU was busy). Without a GPU: operators."""
    cuda = torch.cuda.is_available()
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds, acc_events=True) as seen:
        _sampled(trainer, tokens, rows)
    wanted = DeviceType.CUDA if cuda else DeviceType.CPU
    counts: Counter[str] = Counter()
    busy = 0.0
    for event in seen.events():
        if event.device_type == wanted and not event.name.startswith(("Mem", "ProfilerStep")):
            counts[event.name] += 1
            busy += event.time_range.elapsed_us() / 1e3
    return counts, busy


def _tried(case: Case, name: str, experiment: Callable[[], dict[str, Any]]) -> None:
    try:
        case.note(**{name: experiment()})
    except Exception as error:
        case.note(**{name: f"{type(error).__name__}: {str(error)[:300]}"})


def decoded_by(trainer: Trainer, how: str) -> None:
    """Makes the trainer's domain draw by another `domain.decoding`."""
    domain: Any = trainer.domain
    domain.config = domain.config.model_copy(update={"decoding": how})
    domain.__dict__.pop("_backend", None)  # made at the first rollout


def by_rows(case: Case, trainer: Trainer) -> None:
    """Notes what more rows in one pass cost, eagerly and by CUDA graphs."""
    few, many, all_rows = case.size((12, 28, (8, 32, 128, 512)), (1, 3, (4, 8)))
    rates: dict[str, list[float]] = {}
    for how in ("eager", "graph"):
        decoded_by(trainer, how)
        found: dict[int, dict[str, float]] = {}
        for rows in all_rows:
            _sampled(trainer, few, rows)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            token = _per_token(trainer, few, many, rows)
            found[rows] = {"ms_a_token": token, "tokens_per_second": 1e3 * rows / token}
            if torch.cuda.is_available():
                found[rows]["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
            case.note(**{how: found})
        rates[how] = [one["tokens_per_second"] for one in found.values()]
        good = rates[how][-1] > rates[how][0] or case.is_dry  # a CPU may need as much more time
        case.check(f"{how}: more rows a pass give more tokens a second", good, rates[how])
    faster = [graph / eager for eager, graph in zip(*rates.values(), strict=True)]
    case.check("graphs are faster", min(faster) > 1 or case.is_dry, faster)


def adapters(case: Case, trainer: Trainer) -> None:
    """Notes milliseconds a token with adapters beside the weights, and merged into them."""
    few, many, rows = case.size((4, 20, 16), (1, 3, 2))
    _sampled(trainer, few, rows)
    apart = _per_token(trainer, few, many, rows)
    case.note(adapters={"ms_a_token": apart})
    _tried(case, "adapters", lambda: _merged(trainer, apart, few, many, rows))


def _merged(trainer: Trainer, apart: float, few: int, many: int, rows: int) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    layers: list[Any] = [m for m in trainer.policy.modules() if isinstance(m, LoraLayer)]
    with torch.no_grad():
        for layer in layers:
            layer.merge()
        try:
            merged = _per_token(trainer, few, many, rows)
        finally:
            for layer in layers:
                layer.unmerge()
    return {"ms_a_token": apart, "merged_ms_a_token": merged, "layers": len(layers)}
