"""ZeRO-3 in one process: the same two iterations as FSDP2, full and LoRA, with and without
offloading. DeepSpeed must compile nothing: login nodes and containers often have no nvcc."""

from __future__ import annotations

import os
from typing import Any

from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS

FSDP2 = ["engine.name=fsdp2", "engine.shard=1"]
ZERO3 = ["engine.name=zero3", "engine.shard=all"]
OFFLOAD = ["engine.offload_optimizer=true"]
PARAMETERS = ["engine.offload_parameters=true"]


def run(case: Case) -> None:
    extensions = case.folder / "extensions"
    extensions.mkdir()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    for train in ("full", "lora"):
        expected = _lines(case, f"{train}-fsdp2", train, FSDP2)
        variants = {"zero3": ZERO3, "offloaded": [*ZERO3, *OFFLOAD]}
        if train == "full":
            variants["parameters"] = [*ZERO3, *OFFLOAD, *PARAMETERS]
        for name, settings in variants.items():
            _compare(
                case, f"{train}, {name}", expected, _lines(case, f"{train}-{name}", train, settings)
            )
    built = sorted(path.name for path in extensions.iterdir())
    case.check("DeepSpeed has compiled nothing", not built, built)


def _lines(case: Case, name: str, train: str, settings: list[str]) -> list[dict[str, Any]]:
    small = ["prompts.per_iteration=2", "prompts.group_size=8", "domain.rollout.max_new_tokens=12"]
    more = [f"domain.train={train}", f"engine.device={case.device}", "evaluation.every=0"]
    config = load_config(TASKS["text"], [*small, *more, *settings]).config
    folder = case.folder / name
    folder.mkdir()
    trainer = build_trainer(config, folder)
    with trainer.log:
        return [trainer._iterate() for _ in range(2)]


def _compare(case: Case, name: str, one: list[dict[str, Any]], two: list[dict[str, Any]]) -> None:
    """The first iteration is one of equal weights, the second follows a step of each engine."""
    for number, (a, b) in enumerate(zip(one, two, strict=True), 1):
        off = {key: _off(a[key], b[key]) for key in ("loss", "grad_norm", "reward")}
        good = max(off.values()) < 1e-3
        case.check(f"{name}: iteration {number} equals FSDP2's to 1e-3", good, off)


def _off(a: float, b: float) -> float:
    """Relative difference; absolute below 1e-3, where a loss is a sum of nearly nothing."""
    return abs(a - b) / max(abs(a), abs(b), 1e-3)
