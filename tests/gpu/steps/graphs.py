"""Decoding by CUDA graphs draws the tokens of eager decoding."""

from __future__ import annotations

import torch

from adrpo_scale.core.types import DrawKey
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from adrpo_scale.training.rollout import sample_block
from tests.gpu.steps.base import Case
from tests.gpu.steps.decoding import decoded_by
from tests.gpu.steps.processes import TASKS

EQUAL = 0.99  # of the tokens: a draw on the border between two is decided by a rounding


def run(case: Case, task: str) -> None:
    """In float32, then in bfloat16, where roundings decide more often: that share is noted."""
    for dtype in ("float32", "bfloat16"):
        settings = [f"engine.device={case.device}", f"engine.dtype={dtype}", "evaluation.every=0"]
        settings += ["prompts.per_iteration=4", "prompts.group_size=8"]
        trainer = build_trainer(
            load_config(TASKS[task], settings).config, case.folder / dtype / "run"
        )
        prompts, key, drawn = trainer.stream.at(0), DrawKey(trainer.seed, 0), []
        for how in ("eager", "graph"):
            decoded_by(trainer, how)
            with trainer.engine.sampling(trainer.policy):
                rows = sample_block(trainer.domain, trainer.policy, prompts, 8, key, 32)
            drawn.append(rows.tensors["completion"].cpu())
        share = float((drawn[0] == drawn[1]).double().mean())
        case.note(**{f"equal_{dtype}": share, f"tokens_{dtype}": drawn[0].numel()})
        if dtype == "float32":
            case.check("the tokens are equal", share > EQUAL, share)
    used = torch.cuda.memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0
    case.note(reserved_gb=used)
