"""What the README claims of the text demos, measured again: three seeds, both algorithms."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adrpo_scale.run.tables import Row, after, before, read_rows

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


def train(config: str, folder: Path, *overrides: str) -> list[Row]:
    command = [sys.executable, "-m", "adrpo_scale", "train", f"configs/demo/{config}.toml"]
    command += ["--run-dir", str(folder)]
    command += [part for override in overrides for part in ("--set", override)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=1200)
    return read_rows(folder)


def value(rows: Sequence[Row], iteration: int, metric: str) -> float:
    found = {(r["iteration"], r["metric"]): r["value"] for r in rows if r["split"] == "held_out"}
    return float(found[iteration, metric])


@pytest.mark.parametrize("algorithm", ["grpo", "adrpo"])
def test_greedy_accuracy_rises_from_four_tenths_to_nine(tmp_path: Path, algorithm: str) -> None:
    """In 80 iterations, for seeds 0-2, on held-out prompts."""
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(train, f"text_{algorithm}", tmp_path / f"seed-{s}", f"seed={s}")
            for s in range(3)
        ]
        runs = [job.result() for job in jobs]
    reached = [after(rows, "held_out", "accuracy_greedy") for rows in runs]
    print(f"{algorithm}: greedy accuracy by seed {reached}")
    for rows, accuracy in zip(runs, reached, strict=True):
        begin = before(rows, "held_out", "accuracy_greedy")
        assert begin is not None and 0.35 <= begin <= 0.5
        assert accuracy is not None and accuracy >= 0.9
        assert value(rows, 80, "completion_tokens") > 2 * value(rows, 0, "completion_tokens")


def test_a_reward_model_is_hacked_without_a_penalty_and_not_with_one(tmp_path: Path) -> None:
    """The gold score, never trained on, rises, then falls below where it began; a penalty holds."""
    more = ("iterations=120", "evaluation.every=20")
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(train, "text_rm_grpo", tmp_path / str(b), *more, f"algorithm.beta0={b}")
            for b in (0.0, 0.4)
        ]
        free, held = (job.result() for job in jobs)
    golds = [value(free, n, "gold_sampled") for n in range(0, 121, 20)]
    print(f"gold without a penalty: {golds}")
    assert max(golds) > golds[0] + 0.1
    assert golds[-1] < golds[0] - 0.15
    assert value(free, 120, "reward") > value(free, 40, "reward")
    assert value(held, 120, "gold_sampled") > golds[0]
    assert value(held, 120, "kl") < value(free, 120, "kl") / 2
