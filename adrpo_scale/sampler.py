"""Pictures from a trained run or from any Stable Diffusion 3 pipeline, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from adrpo_scale import dist
from adrpo_scale.build import build_domain, build_engine
from adrpo_scale.config import RunConfig, parse_config
from adrpo_scale.domains.base import Domain
from adrpo_scale.engines.base import Engine
from adrpo_scale.errors import RunFolderError
from adrpo_scale.evaluation.grids import picture_grid
from adrpo_scale.prompts import load_prompts
from adrpo_scale.rollout import sample_block
from adrpo_scale.types import DrawKey, Prompt

GRID_PROMPTS = 12


def config_of(run_or_model: str, prompts: Path) -> tuple[RunConfig, Path | None]:
    """(settings, run folder) of a run; of a model: settings for sampling alone, and None."""
    folder = Path(run_or_model)
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        config = parse_config(json.loads((folder / "config.json").read_text()))
        return config, folder
    return parse_config(
        {
            "domain": {"name": "flow", "model": run_or_model, "train": "full"},
            "algorithm": {"name": "raft"},  # not used: nothing is trained
            "rewards": [{"kind": "function", "path": "not:used"}],
            "prompts": {"train": str(prompts)},
        }
    ), None


def load_policy(
    domain: Domain, engine: Engine, run: Path | None, weights: Literal["trained", "ema"]
) -> nn.Module:
    """The policy with a run's weights, or the plain model. RunFolderError if there are none."""
    if run is None:
        spec = domain.reference_spec() or domain.policy_spec()
        return engine.build_frozen(spec)
    path = run / "weights" / f"{weights}.safetensors"
    if not path.is_file():
        raise RunFolderError(
            f"{path} is not there: the run has not finished"
            + (", or has no ema_decay" if weights == "ema" else "")
        )
    policy = engine.build_policy(domain.policy_spec())
    for name, tensor in load_file(path).items():
        engine.load_whole(name, tensor)
    return policy.eval()


def sample_to(
    config: RunConfig,
    run: Path | None,
    prompts_file: Path,
    to: Path,
    *,
    per_prompt: int,
    seed: int,
    weights: Literal["trained", "ema"],
) -> list[Path]:
    """Writes PROMPT-SAMPLE.png files, grid.png and samples.jsonl into `to`; returns the pictures'
    paths on rank 0. Collective."""
    prompts = load_prompts(prompts_file)
    domain, engine = build_domain(config), build_engine(config)
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(domain, engine, run, weights)
    with engine.sampling(policy):
        rows = sample_block(
            domain,
            policy,
            prompts,
            per_prompt,
            DrawKey(seed, 0),
            config.domain.rollout_chunk,
            evaluation=True,
        )
    pictures = zip(rows.sample_ids_N.tolist(), domain.artifacts(rows), strict=True)
    to.mkdir(parents=True, exist_ok=True)
    for sample, picture in pictures:
        Image.fromarray(picture).save(to / file_name(sample, per_prompt))
    dist.barrier()
    return _write_overview(prompts, per_prompt, to) if dist.is_main() else []


def file_name(sample: int, per_prompt: int) -> str:
    return f"{sample // per_prompt:05d}-{sample % per_prompt:03d}.png"


def _write_overview(prompts: Sequence[Prompt], per_prompt: int, to: Path) -> list[Path]:
    names = [
        [file_name(p * per_prompt + g, per_prompt) for g in range(per_prompt)]
        for p in range(len(prompts))
    ]
    lines = [
        json.dumps({"file": name, "prompt": prompt.text})
        for prompt, row in zip(prompts, names, strict=True)
        for name in row
    ]
    (to / "samples.jsonl").write_text("\n".join(lines) + "\n")
    shown = names[:GRID_PROMPTS]
    images = [[np.asarray(Image.open(to / name)) for name in row] for row in shown]
    picture_grid(images, [p.text for p in prompts[:GRID_PROMPTS]]).save(to / "grid.png")
    return [to / name for row in names for name in row]
