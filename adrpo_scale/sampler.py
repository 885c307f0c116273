"""Pictures from a trained run or from any Stable Diffusion 3 pipeline, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from PIL import Image
from torch import nn

from adrpo_scale import dist
from adrpo_scale.build import build_domain, build_engine, specs_of
from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.config import RunConfig, overridden, parse_config
from adrpo_scale.domains.base import Domain
from adrpo_scale.engines.base import Engine
from adrpo_scale.evaluation.grids import picture_grid
from adrpo_scale.metrics import console
from adrpo_scale.prompts import load_prompts
from adrpo_scale.resume import open_checkpoint, origin_of
from adrpo_scale.rollout import sample_block
from adrpo_scale.training_state import TrainingState
from adrpo_scale.types import DrawKey, Prompt

GRID_PROMPTS = 12


@dataclass(frozen=True)
class Source:
    """What pictures are sampled from: settings, and the checkpoint, or None of a plain model."""

    config: RunConfig
    reader: Reader | None


def find_source(run_or_model: str, prompts: Path) -> Source:
    """A run (RUN or RUN@iteration), a checkpoint folder, or a model with settings for sampling."""
    folder = Path(run_or_model.rpartition("@")[0] if "@" in run_or_model else run_or_model)
    if (
        any((folder / name).is_file() for name in ("config.json", MANIFEST))
        and not (folder / "model_index.json").is_file()
    ):
        reader = open_checkpoint(run_or_model)
        return Source(parse_config(reader.manifest.document["config"]), reader)
    return Source(
        parse_config(
            {
                "domain": {"name": "flow", "model": run_or_model, "train": "full"},
                "algorithm": {"name": "raft"},  # not used: nothing is trained
                "rewards": [{"kind": "function", "path": "not:used"}],
                "prompts": {"train": str(prompts)},
            }
        ),
        None,
    )


def load_policy(
    source: Source, domain: Domain, engine: Engine, weights: Literal["trained", "ema"]
) -> nn.Module:
    """The policy of a checkpoint, or the plain model. CheckpointError if it has no such weights."""
    reader = source.reader
    if reader is None:
        spec = domain.reference_spec() or domain.policy_spec()
        return engine.build_frozen(spec)
    spec, _ = specs_of(domain, source.config, origin_of(reader))
    policy = engine.build_policy(spec)
    part = "policy" if weights == "trained" else "ema"
    TrainingState(engine, None).load(part, engine.trained_slices(), reader)
    engine.publish()
    return policy.eval()


def sample(
    run_or_model: str,
    prompts: Path,
    to: Path,
    per_prompt: int,
    seed: int,
    weights: str,
    overrides: Sequence[str],
) -> None:
    """The verb: joins the process group and writes the pictures."""
    source = find_source(run_or_model, prompts)
    source = replace(source, config=overridden(source.config, overrides))
    engine = source.config.engine
    with dist.process_group(engine.torch_device(), engine.timeout_seconds):
        kind = cast(Literal["trained", "ema"], weights)
        pictures = sample_to(source, prompts, to, per_prompt=per_prompt, seed=seed, weights=kind)
        if dist.is_main():
            console.print(f"{len(pictures)} pictures and grid.png in {to}", highlight=False)


def sample_to(
    source: Source,
    prompts_file: Path,
    to: Path,
    *,
    per_prompt: int,
    seed: int,
    weights: Literal["trained", "ema"],
) -> list[Path]:
    """Writes PROMPT-SAMPLE.png files, grid.png and samples.jsonl into `to`; returns the pictures'
    paths on rank 0. Collective."""
    prompts, config = load_prompts(prompts_file), source.config
    domain, engine = build_domain(config), build_engine(config)
    domain.prepare(prompts, engine.device, engine.dtype)
    policy = load_policy(source, domain, engine, weights)
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
