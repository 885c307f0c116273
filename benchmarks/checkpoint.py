"""The cost of checkpoints: bytes per second of a save, and wall time added to training.

    python -m benchmarks.checkpoint save [--gigabytes 1] [--rounds 5] [--to FOLDER]
    python -m benchmarks.checkpoint training [--iterations 20] [--to FOLDER]

`save`: medians and ratios of three writers in one process, alternating on one filesystem: this
package's store (copy, SHA-256, write, fsync, manifest, rename), `dd conv=fsync` of the same bytes
from memory, and torch's distributed checkpoint, with fsync, of the same tensors.

`training`: the image demo with rollouts so large that an iteration takes at least ten seconds. Of
each pair of iterations, one belongs to the run with checkpoints and one to the run without. The
former has two background saves of one gigabyte, which begin right before an iteration.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from adrpo_scale.checkpoint.base import CheckpointConfig
from adrpo_scale.checkpoint.store import FULL, Store
from adrpo_scale.core.types import FlatRange
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config

ROWS = 1024  # a tensor is [ROWS, 1024] float32: 4 MiB, a projection of a small transformer


def tensors(gigabytes: float) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights and both moments, `gigabytes` in total."""
    count = max(1, round(gigabytes * 1e9 / 3 / (4 * ROWS * 1024)))
    return {
        kind: {f"blocks.{n}.weight": torch.randn(ROWS, 1024) for n in range(count)}
        for kind in ("policy", "exp_avg", "exp_avg_sq")
    }


def as_sets(state: dict[str, dict[str, torch.Tensor]]) -> Any:
    return {
        kind: {n: (FlatRange(tuple(t.shape), 0, t.numel()), t) for n, t in parts.items()}
        for kind, parts in state.items()
    }


def seconds(work: Callable[[], None]) -> float:
    os.sync()  # otherwise this one would also write the previous one's dirty pages
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def measure_save(gigabytes: float, rounds: int, to: Path) -> dict[str, Any]:
    state = tensors(gigabytes)
    size = sum(t.nbytes for parts in state.values() for t in parts.values())
    store = Store(to, CheckpointConfig(background=False, keep_last=1))
    sets, iteration = as_sets(state), 0
    flat = {f"{kind}.{n}": t for kind, parts in state.items() for n, t in parts.items()}
    found: dict[str, list[float]] = {"ours": [], "dd": [], "torch": []}
    # dd gets the same bytes, from memory: some virtual disks write zeros at no cost.
    source = Path("/dev/shm") / f"benchmark-{os.getpid()}"
    save_file(flat, source)

    def ours() -> None:
        store.save(FULL, iteration, sets, {})

    def dd() -> None:
        blocks = size // (8 << 20)
        command = ["dd", f"if={source}", f"of={to}/dd", "bs=8M", f"count={blocks}", "conv=fsync"]
        subprocess.run(command, check=True, capture_output=True)

    def torchs() -> None:
        dcp.save(flat, storage_writer=dcp.FileSystemWriter(to / "torch"), no_dist=True)

    for iteration in range(rounds + 1):
        times = {"ours": seconds(ours), "dd": seconds(dd), "torch": seconds(torchs)}
        shutil.rmtree(to / "torch")
        (to / "dd").unlink()
        if iteration:  # the first round also allocates memory
            for name, value in times.items():
                found[name].append(value)
            print({name: f"{size / 1e6 / value:.0f} MB/s" for name, value in times.items()})
    assert not any(saved.error for saved in store.ended)
    source.unlink()
    median = {name: statistics.median(times) for name, times in found.items()}
    return {
        "bytes": size,
        "rounds": rounds,
        "megabytes_per_second": {n: round(size / 1e6 / s) for n, s in median.items()},
        "ours_over_dd": round(median["dd"] / median["ours"], 3),
        "ours_over_torch": round(median["torch"] / median["ours"], 3),
    }


def measure_training(iterations: int, to: Path) -> dict[str, Any]:
    # 26 prompts x 24 samples, 16 Euler steps: above ten seconds an iteration on one core.
    given = ["evaluation.every=0", "logging.pictures_every=0", "iterations=1000"]
    given += ["prompts.per_iteration=26", "prompts.group_size=24", "domain.rollout.steps=16"]
    config = load_config(Path("configs/demo/image_adrpo.toml"), given).config
    trainer = build_trainer(config, to)
    store = Store(to, CheckpointConfig(keep_last=1))
    sets = as_sets(tensors(1.0))
    saves = {iterations // 3, 2 * iterations // 3}
    found: dict[bool, list[float]] = {True: [], False: []}
    with trainer.log:
        trainer._iterate()
        for number in range(iterations):
            for with_saves in (True, False) if number % 2 else (False, True):

                def one(with_saves: bool = with_saves, number: int = number) -> None:
                    if with_saves and number in saves:
                        store.save(FULL, number, sets, {})
                    trainer._iterate()

                found[with_saves].append(seconds(one))
                store.wait()
    assert [saved.error for saved in store.ended] == [None, None]
    return {
        "iterations": iterations,
        "seconds_an_iteration": round(statistics.mean(found[False]), 1),
        "shortest_iteration": round(min(found[False]), 1),
        "saves": len(store.ended),
        "seconds_of_a_save": [round(saved.seconds, 1) for saved in store.ended],
        "with_over_without": round(sum(found[True]) / sum(found[False]), 4),
        "pairs": [round(a / b, 3) for a, b in zip(found[True], found[False], strict=True)],
        "pairs_with_a_save": sorted(saves),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["save", "training"])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--to", type=Path, help="folder on the filesystem to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=given.to) as folder:
        if given.what == "save":
            result = measure_save(given.gigabytes, given.rounds, Path(folder))
        else:
            result = measure_training(given.iterations, Path(folder))
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
