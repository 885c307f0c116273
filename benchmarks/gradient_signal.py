"""The gradient signal of `metrics.jsonl` against cosines of independent batches, at the base of the
image demo: the table of docs/results/gradient-signal.md.

    python -m benchmarks.gradient_signal [--iterations 64] [--to signal.json]

For three rewards and one or four draws per sample the real trainer runs at a learning rate that
leaves the policy where it is, so every iteration's gradient is of an independent batch of 6 prompts
× 12 samples at the same weights. From the gradients: c, the mean cosine over all pairs, with its
error by leaving one batch out at a time; and the same weighted by lengths, which is what Adam's
moments see. From the run: the mean of `gradient_signal` over the iterations that have one. Its
error is the spread that other orders of the same gradients give; over orders the signal's mean is c
weighted by lengths, by arithmetic. The first of the six runs rolls out; the others take its
pictures, which theirs would equal. Prints a Markdown table; `--to` keeps every number. Times are
CPU-seconds of the process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.markdown import table
from adrpo_scale.core.types import Rows
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from adrpo_scale.training.gradient_signal import STEPS, noise_ratio

REWARDS = {
    "strict checker": "{kind='glyph_checker'}",
    "graded checker": "{kind='glyph_checker',graded=true}",
    "small CLIP": "{kind='clip',model='demo:image/reward_clip'}",
}
DRAWS = (1, 4)
STANDS_STILL = [
    *("optimizer.learning_rate=1e-12", "optimizer.updates=1", "evaluation.every=0"),
    *("algorithm.scale=group_std", "logging.pictures_every=0", "logging.histograms_every=0"),
]


def measured(reward: str, draws: int, iterations: int, rolled: list[Rows]) -> dict[str, Any]:
    """Every number of one row of the table. rolled: of every iteration, filled by the first run."""
    settings = [f"rewards=[{reward}]", f"optimizer.draws_per_sample={draws}"]
    settings += [f"iterations={iterations}", *STANDS_STILL]
    config = load_config(Path("configs/demo/image_adrpo.toml"), settings).config
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, Path(folder))
        gradients = noted(trainer)
        if rolled:
            again = iter(list(rolled))
            trainer.domain.sample = lambda *_: next(again)  # type: ignore[method-assign]
        else:
            sample = trainer.domain.sample
            trainer.domain.sample = lambda *a: rolled.append(sample(*a)) or rolled[-1]  # type: ignore
        begin = time.process_time()
        trainer.train()
        seconds = time.process_time() - begin
        lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["gradient_signal"] for line in lines]
    signals = [value for value in found if value is not None]
    gradients_BE = torch.stack(gradients)
    gram_BB, optimizer = gradients_BE @ gradients_BE.T, config.optimizer
    by_hand = signals_of(gram_BB, optimizer)
    return {
        **cosines(gradients_BE),
        "signal": statistics.fmean(signals),
        "signal_error": spread_over_orders(gram_BB, optimizer),
        "signals": signals,
        "largest_difference_by_hand": float((by_hand - torch.tensor(signals)).abs().max()),
        "cpu_seconds": seconds,
    }


def noted(trainer: Any) -> list[Tensor]:
    """The gradients of all steps to come, flat, before clipping."""
    step, found = trainer.engine.step, []

    def noting(rate: float) -> Any:
        parameters = [p for p in trainer.policy.parameters() if p.requires_grad]
        found.append(torch.cat([p.grad.flatten() for p in parameters]).double())
        return step(rate)

    trainer.engine.step = noting
    return found


def signals_of(gram_BB: Tensor, optimizer: OptimizerConfig) -> Tensor:
    """`gradient_signal` after each step from 3/(1 - beta1) on, by default float64 [B - 29].
    gram_BB: products of the gradients, in the order of the steps."""
    count, (beta1, beta2) = len(gram_BB), (optimizer.beta1, optimizer.beta2)
    found = []
    for steps in range(round(STEPS / (1 - beta1)), count + 1):
        ages = torch.arange(steps - 1, -1, -1, dtype=torch.float64)
        first_T, second_T = ((1 - b) * b**ages / (1 - b**steps) for b in (beta1, beta2))
        part_TT = gram_BB[:steps, :steps]
        rho = first_T @ part_TT @ first_T / (second_T @ part_TT.diagonal())
        noise = noise_ratio(beta1, steps)
        found.append((rho - noise) / (1 - noise))
    return torch.stack(found)


def spread_over_orders(gram_BB: Tensor, optimizer: OptimizerConfig, orders: int = 100) -> float:
    """The standard deviation, over random orders of the steps, of the mean signal."""
    generator, means = torch.Generator().manual_seed(0), []
    for _ in range(orders):
        order = torch.randperm(len(gram_BB), generator=generator)
        means.append(float(signals_of(gram_BB[order][:, order], optimizer).mean()))
    return statistics.stdev(means)


def cosines(gradients_BE: Tensor) -> dict[str, Any]:
    """Of B gradients with E elements: the mean cosine over pairs, |sum of pairs' products| over
    squared lengths, and the error of the first by the jackknife."""
    units_BE = gradients_BE / gradients_BE.norm(dim=1, keepdim=True)
    products_BB, plain_BB = units_BE @ units_BE.T, gradients_BE @ gradients_BE.T
    count = len(gradients_BE)
    without = [_mean_off_diagonal(_left_out(products_BB, k)) for k in range(count)]
    spread = torch.tensor(without).sub(sum(without) / count).square().sum()
    return {
        "cosine": _mean_off_diagonal(products_BB),
        "error": float(((count - 1) / count * spread).sqrt()),
        "ratio": _mean_off_diagonal(plain_BB) / float(plain_BB.diagonal().mean()),
        "batches": count,
    }


def _left_out(matrix_BB: Tensor, k: int) -> Tensor:
    keep = [i for i in range(len(matrix_BB)) if i != k]
    return matrix_BB[keep][:, keep]


def _mean_off_diagonal(matrix_BB: Tensor) -> float:
    count = len(matrix_BB)
    return float(matrix_BB.sum() - matrix_BB.diagonal().sum()) / (count * (count - 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=64)
    parser.add_argument("--to", type=Path, help="a JSON file for every number")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, rolled = {}, list[Rows]()
    for draws in DRAWS:
        for name, reward in REWARDS.items():
            row = rows[name, draws] = measured(reward, draws, arguments.iterations, rolled)
            print({k: v for k, v in row.items() if k != "signals"}, file=sys.stderr)
    lines = [["reward", "draws", "c, cosine of batches", "weighted by lengths", "signal", "CPU-s"]]
    lines += [
        [
            name,
            str(draws),
            f"{row['cosine']:.3f} ± {row['error']:.3f}",
            f"{row['ratio']:.3f}",
            f"{row['signal']:.3f} ± {row['signal_error']:.3f}",
            f"{row['cpu_seconds']:.0f}",
        ]
        for (name, draws), row in rows.items()
    ]
    print(table(lines))
    if arguments.to is not None:
        document = [{"reward": n, "draws": d, **row} for (n, d), row in rows.items()]
        arguments.to.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
