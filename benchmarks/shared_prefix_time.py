"""CPU-seconds of an iteration of the text demo with and without shared prompts, alternating.

    python -m benchmarks.shared_prefix_time [--rounds 8] [--config configs/demo/text_rm_grpo.toml]

One process, one thread. Each round is two iterations of each, from the same start; the ratio is
taken round by round, of whole iterations and of their updates, and its median and spread are
printed.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch


def trainer_of(config: Path, is_shared: bool, folder: Path) -> Any:
    from adrpo_scale.run.build import build_trainer
    from adrpo_scale.run.load import load_config

    settings = [f"domain.shared_prefix={str(is_shared).lower()}", "evaluation.every=0"]
    settings += ["checkpoint.every_minutes=0", "checkpoint.every_iterations=1000000"]
    return build_trainer(load_config(config, settings).config, folder)


class Timed:
    """The trainer, and the CPU-seconds of its updates."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.updates, self._update = trainer, 0.0, trainer._update
        trainer._update = self._timed

    def _timed(self, *arguments: Any, **more: Any) -> Any:
        begin = time.process_time()
        try:
            return self._update(*arguments, **more)
        finally:
            self.updates += time.process_time() - begin

    def run(self, iterations: int) -> tuple[float, float]:
        """(CPU-seconds, those of updates)"""
        self.updates, begin = 0.0, time.process_time()
        for _ in range(iterations):
            self.trainer._iterate()
        return time.process_time() - begin, self.updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--config", type=Path, default=Path("configs/demo/text_rm_grpo.toml"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        pair = [
            Timed(trainer_of(arguments.config, flag, Path(folder) / str(flag)))
            for flag in (False, True)
        ]
        with pair[0].trainer.log, pair[1].trainer.log:
            for timed in pair:
                timed.run(1)
            rounds = [[timed.run(2) for timed in pair] for _ in range(arguments.rounds)]
    for place, name in enumerate(("iteration", "its updates")):
        plain = statistics.median(r[0][place] / 2 for r in rounds)
        ratios = sorted(r[1][place] / r[0][place] for r in rounds)
        print(
            f"{name}: {plain:.3f} CPU-seconds plain; shared over plain "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        )


if __name__ == "__main__":
    main()
