"""What the dice demo's base reaches without training: guidance, and the best of 12 by its CLIP.

    python -m benchmarks.dice_baselines [--samples 48] [--to baselines.json]

For each guidance: the pictures of the evaluation of `configs/demo/dice_adrpo.toml`, 12 prompts × 48
a split by default, with the noise that evaluations during training have. Shares of pictures: right
by the strict checker, one of the three known mistakes, unreadable. Best of 12: the share of right
ones where the CLIP chooses one of every 12 pictures, at twelve times the samples. Prints a Markdown
table; `--to` keeps the numbers. One process, one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adrpo_scale.core.markdown import table
from adrpo_scale.core.types import DrawKey
from adrpo_scale.demo.dice.task import SHEET, check, mistakes, parse_prompt
from adrpo_scale.demo.image.task import satisfies
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from adrpo_scale.training.evaluator import EVALUATION
from adrpo_scale.training.rollout import sample_block
from adrpo_scale.training.trainer import Trainer

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 5.0)
CHOICES = 12
CONFIG = Path("configs/demo/dice_adrpo.toml")


def measured(guidance: float, samples: int) -> list[dict[str, Any]]:
    """A row per split."""
    settings = [f"domain.evaluation.guidance={guidance}"]
    settings += [f"evaluation.samples_per_prompt={samples}"]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(load_config(CONFIG, settings).config, Path(folder))
        return [row(trainer, split, guidance) for split in trainer.evaluator.splits]


def row(trainer: Trainer, split: str, guidance: float) -> dict[str, Any]:
    evaluator, domain = trainer.evaluator, trainer.domain
    prompts, size = evaluator.splits[split], evaluator.config.samples_per_prompt
    key, began = DrawKey(evaluator.config.seed, EVALUATION), time.process_time()
    with trainer.engine.sampling(trainer.policy):
        rows = sample_block(
            domain, trainer.policy, prompts, size, key, evaluator.chunk, mode="evaluation"
        )
    pictures = domain.artifacts(rows)
    prompts_N = [prompts[int(sample) // size] for sample in rows.sample_ids_N]
    clip = next(reward for reward in evaluator.rewards if reward.label == "clip")
    scores_N = torch.as_tensor(clip(pictures, prompts_N))
    right_N = torch.tensor(
        [float(check(a, p.text)) for a, p in zip(pictures, prompts_N, strict=True)]
    )
    read = [SHEET.read(picture) for picture in pictures]
    mistaken = [
        glyphs is not None and any(satisfies(glyphs, m) for m in mistakes(parse_prompt(p.text)))
        for glyphs, p in zip(read, prompts_N, strict=True)
    ]
    best_B = scores_N.view(-1, CHOICES).argmax(1, keepdim=True)
    return {
        "split": split,
        "guidance": guidance,
        "pictures": len(pictures),
        "right": float(right_N.mean()),
        "one_mistake": float(np.mean(mistaken)),
        "unreadable": float(np.mean([glyphs is None for glyphs in read])),
        "best_of_12": float(right_N.view(-1, CHOICES).gather(1, best_B).mean()),
        "clip": float(scores_N.mean()),
        "cpu_seconds": time.process_time() - began,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=48, help="a prompt; a multiple of 12")
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--to", type=Path, help="a JSON file for every number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for g in arguments.guidance for row in measured(g, arguments.samples)]
    columns = ("right", "one_mistake", "unreadable", "best_of_12", "clip")
    lines = [["split", "guidance", *(name.replace("_", " ") for name in columns)]]
    for row in sorted(rows, key=lambda row: (row["split"], row["guidance"])):
        shares = [f"{row[name]:.3f}" for name in columns[:-1]]
        lines.append([row["split"], f"{row['guidance']:g}", *shares, f"{row['clip']:.1f}"])
    print(table(lines))
    if arguments.to is not None:
        arguments.to.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
