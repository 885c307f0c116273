"""A save in the background holds the state at its call, whatever training does to it meanwhile."""

from __future__ import annotations

import time

import torch

from adrpo_scale.checkpoint.store import FULL
from adrpo_scale.run.build import build_trainer
from tests.gpu.steps.base import Case
from tests.gpu.test_plan_memory import qwen3_config
from tests.support.starts import newest


def run(case: Case) -> None:
    layers, vocabulary = case.size((8, 65536), (1, 2048))
    config = qwen3_config(case.folder, layers, vocabulary, tokens=16)
    saves = config.checkpoint.model_copy(update={"every_iterations": 1, "background": True})
    rollout = config.domain.rollout.model_copy(update={"max_new_tokens": 16})
    domain = config.domain.model_copy(update={"rollout": rollout})
    config = config.model_copy(update={"checkpoint": saves, "domain": domain})
    trainer = build_trainer(config, case.folder / "run")
    with trainer.log:
        trainer._iterate()
        sets = trainer.state.sets(FULL)
        kept = {
            part: {name: values.detach().cpu().clone() for name, (_, values) in tensors.items()}
            for part, tensors in sets.items()
        }
        bytes_ = sum(t.numel() * t.element_size() for s in kept.values() for t in s.values())
        begin = time.perf_counter()
        trainer.saver.maybe_save(False)
        copied = time.perf_counter() - begin
        with torch.no_grad():
            for tensors in sets.values():
                for _, values in tensors.values():
                    values.add_(1)  # as the next iteration would, and at once
        trainer.saver.close()
    seconds = trainer.saver.seconds
    case.note(gb=bytes_ / 1e9, seconds_of_the_call=copied, seconds_to_the_commit=seconds)
    reader = newest(case.folder / "run")
    wrong = [
        f"{part}/{name}"
        for part, tensors in kept.items()
        for name, values in tensors.items()
        if not torch.equal(reader.whole(name, part).view(values.shape), values)
    ]
    case.check("the checkpoint equals the state at the call", not wrong, wrong[:3])
    faults = list(reader.faults())
    case.check("its files have no faults", not faults, faults[:3])
    memory = trainer.saver._store._stages[FULL]._memory.values()
    pinned = all(copy.is_pinned() for copy in memory)
    case.check("host copies are pinned", pinned or case.is_dry, pinned)
