"""Whole runs on the pretended device, for `run_ranks(…, grouped=False)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.cluster.plan.choice import choose_apart
from adrpo_scale.domains import decoding
from adrpo_scale.run.load import load_config
from adrpo_scale.run.train import TrainOptions, train
from tests.support.pretend_cuda import pretend_cuda
from tests.support.shared import CACHE
from tests.support.tiny import CONFIGS

# Iterations of the demos in a second: evaluation before and after each, a checkpoint at the end.
SHORT = ["evaluation.every=1", "prompts.per_iteration=2"]
TOKENS = 20  # of a completion: more than decoding.LOOK
OF_TOKENS = [
    *SHORT,
    "prompts.group_size=4",
    "evaluation.prompts=2",
    f"domain.rollout.max_new_tokens={TOKENS}",
    f"domain.evaluation.max_new_tokens={TOKENS}",
    "logging.completions_every=0",
]
CUT = {
    "text": OF_TOKENS,
    "audio": OF_TOKENS,
    "image": [
        *SHORT,
        "prompts.group_size=2",
        "domain.rollout.steps=2",
        "domain.evaluation.steps=2",
        "evaluation.prompts=2",
        "evaluation.samples_per_prompt=2",
        "logging.pictures_every=0",
        "optimizer.micro_batch=2",
    ],
}


def trained(rank: int, world: int, task: str, device: str, run: Path, *settings: str) -> Any:
    """Trains a demo in a rank; with device "cuda", on a pretended one, whose counts it returns."""
    os.environ["ADRPO_CACHE"] = str(CACHE)
    path = CONFIGS / "demo" / f"{task}_adrpo.toml"
    if device == "cpu":
        return _train(path, run, [*CUT[task], *settings, "engine.device=cpu"])
    torch.set_num_threads(1)  # as an engine on a CPU does: sums of more threads round otherwise
    with pretend_cuda(devices=int(os.environ["LOCAL_WORLD_SIZE"])) as seen:
        _train(path, run, [*CUT[task], *settings, "engine.device=cuda"])
    return seen.summary()


def trained_looking_at_every_token(rank: int, world: int, *args: Any) -> Any:
    """`trained`, with the CPU's way of looking at unfinished rows: numbers are then the CPU's."""
    decoding.LOOK = 1
    return trained(rank, world, *args)


def trained_on_nodes_of_two(rank: int, world: int, *args: Any) -> Any:
    """`trained_looking_at_every_token`, with two ranks on each node."""
    os.environ |= {"LOCAL_RANK": str(rank % 2), "LOCAL_WORLD_SIZE": "2"}
    return trained_looking_at_every_token(rank, world, *args)


def _train(path: Path, run: Path, settings: Sequence[str]) -> None:
    train(load_config(path, settings), TrainOptions(run, choose=choose_apart))
