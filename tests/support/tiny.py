"""The image demo as the tests use it: a real Stable Diffusion 3 pipeline of .98 M parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core import dist
from adrpo_scale.engines.base import Engine
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import load_config
from adrpo_scale.training.trainer import Trainer
from tests.support.shared import CACHE

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL = "demo:image"
# A run of seconds: S = 4 prompts x 4 samples, 4 Euler steps, no evaluation.
SMALL = [
    "iterations=1",
    "prompts.per_iteration=4",
    "prompts.group_size=4",
    "domain.rollout.steps=4",
    "domain.evaluation.steps=4",
    "optimizer.micro_batch=4",
    "optimizer.updates=1",
    "evaluation.every=0",
    "evaluation.prompts=2",
    "evaluation.samples_per_prompt=3",
    "logging.pictures_every=0",
]
FULL = ["domain.train=full", "domain.lora=null"]  # all parameters instead of adapters


def demo_config(algorithm: str = "adrpo", overrides: Sequence[str] = ()) -> RunConfig:
    """configs/demo/image_<algorithm>.toml cut down to seconds, then `overrides` as in --set."""
    path = CONFIGS / "demo" / f"image_{algorithm}.toml"
    return load_config(path, [*SMALL, *overrides]).config


def demo_trainer(folder: Path, config: RunConfig) -> Trainer:
    """The trainer of a run in `folder`. Collective."""
    os.environ["ADRPO_CACHE"] = str(CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, folder)


def records(folder: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's JSONL file."""
    return [json.loads(line) for line in (folder / file).read_text().splitlines()]


def whole_tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """Every trained parameter in full, put together from all ranks' slices. Collective."""
    slices, places = engine.trained_slices(), engine.places()
    mine = {n: (places[n].start, t.detach().reshape(-1).clone()) for n, t in slices.items()}
    everybodys = dist.gather_objects(mine)
    whole = {}
    for name, place in places.items():
        flat = torch.full((torch.Size(place.shape).numel(),), torch.nan)
        for parts in everybodys:
            start, values = parts[name]
            flat[start : start + len(values)] = values
        whole[name] = flat.view(place.shape)
    return whole


@torch.no_grad()
def load_whole(engine: Engine, tensors: Mapping[str, torch.Tensor]) -> None:
    """Sets trained parameters from full tensors."""
    slices, places = engine.trained_slices(), engine.places()
    for name, tensor in tensors.items():
        part = tensor.reshape(-1)[places[name].start : places[name].stop]
        slices[name].copy_(part.view(slices[name].shape))
    engine.publish()
