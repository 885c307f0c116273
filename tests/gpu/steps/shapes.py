"""Models of the published shapes with random weights, in the memory of an A6000: two iterations by
the trainer, their seconds and peak against `plan`, and how tokens are decoded."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from adrpo_scale.cluster.plan import rehearsal
from adrpo_scale.cluster.plan.base import Plan
from adrpo_scale.cluster.plan.workload import workload_of
from adrpo_scale.core.file_hashes import file_hashes
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.training.trainer import Trainer
from benchmarks import qwen3_0_6b
from tests.gpu import test_plan_memory
from tests.gpu.steps import decoding
from tests.gpu.steps.base import Case
from tests.gpu.test_plan_memory import omni_config, qwen3_config, sd3_config

CAP = 44.7 * 2**30  # bytes: the 48 GB of an A6000
SHOWN = ("seconds_rollout", "seconds_reward", "seconds_update", "samples", "completion_tokens")
TOLERANCE = test_plan_memory.TOLERANCE
OMNI_PLAN = "omni-plan.pickle"


def _limit() -> None:
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / total))


def _measured(case: Case, config: RunConfig, profile: Any = None, plan: Plan | None = None) -> None:
    """The peak against `plan`, and the seconds of the second iteration; those of the first are
    noted before it begins."""
    _limit()

    def each(line: dict[str, Any]) -> None:
        keys = [k for k in line if k in SHOWN or k.startswith("peak_gb_")]
        case.note(iteration={k: line[k] for k in keys})
        if "completion_tokens" in line:
            made = line["completion_tokens"] * line["samples"]
            case.note(tokens_per_second=made / line["seconds_rollout"])

    def then(trainer: Trainer, plan: Plan) -> None:
        case.note(planned_seconds={t.phase: t.seconds for t in plan.times})
        trained = [p.numel() for p in trainer.policy.parameters() if p.requires_grad]
        all_ = sum(p.numel() for p in trainer.policy.parameters())
        case.note(parameters=all_, trained=sum(trained))
        if profile is not None:
            profile(case, trainer)

    if plan is None:
        plan = test_plan_memory.planned(config)
    case.note(planned={m.phase: m.bytes for m in plan.memory})
    found = test_plan_memory.compare(config, case.folder, then, plan=plan, each=each)
    found.pop("lines")
    ratio = found["predicted"] / found["measured"]
    case.note(memory=found, ratio=ratio)
    case.check("the peak is below 44.7 GiB", found["measured"] < CAP, found["measured"] / 2**30)
    # Without a GPU, live tensors are counted, of few layers: `test_plan_memory` judges those.
    near = abs(ratio - 1) < TOLERANCE or case.is_dry
    case.check("plan is within a tenth of the peak", near, ratio)


def sd3(case: Case) -> None:
    config = sd3_config(case.folder, *case.size((24, 24, (128, 256, 512, 512)), (1, 1, (32,) * 4)))
    if case.is_dry:
        small = {"height": 64, "width": 64, "max_sequence_length": 16}
        solver = config.domain.rollout.model_copy(update={"steps": 2})
        domain = config.domain.model_copy(update={**small, "rollout": solver})
        config = config.model_copy(update={"domain": domain})
    _measured(case, config)


def _with(config: RunConfig, **domain: Any) -> RunConfig:
    return config.model_copy(update={"domain": config.domain.model_copy(update=domain)})


def _omni(case: Case) -> RunConfig:
    layers, vocabulary, seconds = case.size((28, 152064, 10.0), (2, 8192, 2.0))
    return omni_config(case.models / "omni", layers, vocabulary, seconds)


def omni_model(case: Case) -> None:
    """What needs no GPU of its own: 17 GB of files, their hashes in the cache, and the plan."""
    config = _omni(case)
    files = [path for path in (case.models / "omni").iterdir() if path.is_file()]
    hashes = file_hashes(files)
    case.check("every file has a hash", len(hashes) == len(files), len(files))
    case.note(gb=sum(path.stat().st_size for path in files) / 1e9)
    plan = test_plan_memory.planned(config)
    (case.models / OMNI_PLAN).write_bytes(pickle.dumps(plan))
    case.note(planned={m.phase: m.bytes for m in plan.memory})


def omni(case: Case) -> None:
    place = case.models / OMNI_PLAN
    plan = pickle.loads(place.read_bytes()) if place.exists() else None
    _measured(case, _with(_omni(case), decoding="eager"), decoding.adapters, plan)


def omni_graph(case: Case) -> None:
    """The same two iterations, decoded by CUDA graphs."""
    _measured(case, _with(_omni(case), decoding="graph"))


def _qwen3(case: Case) -> RunConfig:
    vocabulary = int(qwen3_0_6b.SHAPE["vocab_size"])
    layers, vocabulary, tokens = case.size((28, vocabulary, 64), (2, 8192, 16))
    return qwen3_config(case.folder, layers, vocabulary, tokens)


def qwen3_decoding(case: Case) -> None:
    """No iteration: the rollout's own passes, a few tokens each."""
    config = _qwen3(case)
    decoding.profiled(case, build_trainer(config, case.folder / "run"))
    work = workload_of(config)
    number = next(i for i, step in enumerate(work.rollout) if step.has_cache)
    planned = rehearsal.rollout_step(config, work, number, 32).at(32).operators
    case.note(planned_operators_a_token=planned)
    counted = case.findings.figures["kernels_a_token"]
    near = abs(planned / counted - 1) < 0.25 or case.is_dry  # without a GPU operators are counted
    case.check("plan's operators are within a quarter of the kernels", near, counted)


def qwen3_rows(case: Case) -> None:
    """The rollout's own passes again, with few and many rows side by side."""
    decoding.by_rows(case, build_trainer(_qwen3(case), case.folder / "run"))


def qwen3(case: Case) -> None:
    _measured(case, _with(_qwen3(case), decoding="eager"))


def qwen3_graph(case: Case) -> None:
    """The same two iterations, decoded by CUDA graphs."""
    _measured(case, _with(_qwen3(case), decoding="graph"))
