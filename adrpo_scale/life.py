"""What a process does from its start to its end, for the verbs that run models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from rich.table import Table
from safetensors.torch import save_file

from adrpo_scale import dist
from adrpo_scale.build import build_trainer
from adrpo_scale.config import LoadedConfig, RunConfig, assign, parse_config, parse_override
from adrpo_scale.errors import LimitReached, NonFiniteError
from adrpo_scale.evaluation import figures, tables
from adrpo_scale.metrics import console, setup_logging
from adrpo_scale.run_folder import default_folder, open_folder
from adrpo_scale.sampler import config_of, sample_to
from adrpo_scale.trainer import Trainer

log = logging.getLogger(__name__)


def train(loaded: LoadedConfig, run_dir: Path | None) -> None:
    """One life of a run: folder, models, loop, weights, summary."""
    config = loaded.config
    run = run_dir or default_folder(loaded.name, config.digest())
    if dist.rank_facts().is_main:
        console.print(f"run folder: {run}", highlight=False, soft_wrap=True)
    device = config.engine.torch_device()
    with dist.process_group(device, config.engine.timeout_seconds):
        dist.run_on_main(lambda: open_folder(run, config.resolved()))
        setup_logging(run)
        trainer = build_trainer(config, run)
        log.info("%d trained parameters on this rank", _trained_here(trainer))
        try:
            trainer.train()
        except (LimitReached, NonFiniteError):
            # Every rank raises these at the same place, so they can still save together.
            save_weights(trainer)
            raise
        save_weights(trainer)
        if dist.is_main():
            summarise(run)


def _trained_here(trainer: Trainer) -> int:
    return sum(part.numel() for part in trainer.engine.trained_slices().values())


def save_weights(trainer: Trainer) -> None:
    """`weights/trained.safetensors`, and `ema.safetensors` with ema_decay. Collective."""
    sets = {"trained": trainer.trained_tensors()}
    if trainer.ema is not None:
        with trainer.ema.applied():
            sets["ema"] = trainer.trained_tensors()
    if dist.is_main():
        folder = trainer.run / "weights"
        folder.mkdir(exist_ok=True)
        for name, tensors in sets.items():
            save_file(
                {n: t.contiguous() for n, t in tensors.items()}, folder / f"{name}.safetensors"
            )


def summarise(run: Path) -> None:
    """The table before/after, and where everything is."""
    if (run / "eval.jsonl").is_file():
        rows = tables.read_rows(run)
        table = Table("metric", "split", "before", "after", "change", title="before and after")
        for split, metric, before, after in tables.before_after(rows):
            change = None if before is None or after is None else after - before
            table.add_row(metric, split, _number(before), _number(after), _number(change, "+"))
        console.print(table)
        console.print(f"after: mean of the last {tables.LAST} evaluations", style="dim")
        figures.curves([rows], run / "curves.png")
        console.print(f"curves:       {run / 'curves.png'}", highlight=False, soft_wrap=True)
    if (run / "samples").is_dir():
        console.print(f"picture grids: {run / 'samples'}", highlight=False, soft_wrap=True)
    console.print(
        f"TensorBoard:  tensorboard --logdir {run / 'tensorboard'}", highlight=False, soft_wrap=True
    )


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def sample(
    run_or_model: str,
    prompts: Path,
    to: Path,
    per_prompt: int,
    seed: int,
    weights: str,
    overrides: Sequence[str],
) -> None:
    """Pictures from a run or a model; see `sampler`."""
    config, run = config_of(run_or_model, prompts)
    config = _overridden(config, overrides)
    with dist.process_group(config.engine.torch_device(), config.engine.timeout_seconds):
        kind = cast(Literal["trained", "ema"], weights)
        pictures = sample_to(
            config, run, prompts, to, per_prompt=per_prompt, seed=seed, weights=kind
        )
        if dist.is_main():
            console.print(f"{len(pictures)} pictures and grid.png in {to}", highlight=False)


def _overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    data = config.resolved()
    for override in overrides:
        assign(data, *parse_override(override))
    return parse_config(data)
