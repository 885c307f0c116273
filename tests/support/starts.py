"""Starts of a run: the real command in N processes that can be signalled, killed and started again.

Forked from the same forkserver as `tests.support.ranks`: a start costs what its training costs.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from adrpo_scale.run.starts import records as start_records
from tests.support.closeness import assert_adam_near, drifted
from tests.support.ranks import LONGEST, forkserver, launched, prepare_process
from tests.support.shared import CACHE
from tests.support.tiny import CONFIGS, SMALL, records

TINY = [  # a run whose iterations take hundredths of a second
    *SMALL,
    "prompts.per_iteration=2",
    "prompts.group_size=2",
    "domain.rollout.steps=2",
    "domain.evaluation.steps=2",
    "optimizer.micro_batch=2",
    "engine.timeout_seconds=60",
]


class Started:
    """One start of `adrpo-scale ...` in `world` processes, under way.

    prepare: a picklable function of the rank that is called in each process before the command.
    environment: further variables of every process.
    """

    def __init__(
        self,
        folder: Path,
        world: int,
        arguments: Sequence[str],
        prepare: Callable[[int], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.world, self._folder = world, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._store = td.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.processes: list[Any] = []
        for rank in range(world):
            variables = {
                "ADRPO_CACHE": str(CACHE),
                **(environment or {}),
            }
            if world > 1:
                variables |= launched(rank, world, self._store.port)
            process = forkserver().Process(
                target=_one,
                args=(variables, list(arguments), str(self.output(rank)), pickle.dumps(prepare)),
            )
            process.start()
            self.processes.append(process)
        self._rank_of = {process.pid: rank for rank, process in enumerate(self.processes)}

    def output(self, rank: int = 0) -> Path:
        """The file that a rank's standard output and error go to."""
        return self._folder / f"output-{rank}.txt"

    def text(self) -> str:
        """What all ranks have written."""
        files = [self.output(rank) for rank in range(self.world)]
        return "\n".join(file.read_text() for file in files if file.exists())

    def signal(self, number: signal.Signals, ranks: Sequence[int] | None = None) -> None:
        for rank in range(self.world) if ranks is None else ranks:
            if self.processes[rank].is_alive():
                os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """SIGKILL, all processes at once: a dead node."""
        self.signal(signal.SIGKILL)
        self.wait(10)

    def wait(self, timeout: float = LONGEST, others: float = 10) -> list[int]:
        """Exit codes (negative: of a signal). When one process dies the others are ended after
        `others` seconds, as a launcher does."""
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in self.processes):
            if any(p.exitcode not in (None, 0) for p in self.processes):
                deadline = min(deadline, time.monotonic() + others)
            if time.monotonic() > deadline:
                for process in self.processes:
                    process.kill()
            for process in self.processes:
                process.join(0.02)
        return [process.exitcode for process in self.processes]


def train_arguments(run: Path, overrides: Sequence[str] = (), *flags: str) -> list[str]:
    """`train configs/demo/image_adrpo.toml` cut down to TINY, with further `--set`s."""
    config = CONFIGS / "demo" / "image_adrpo.toml"
    sets = [part for override in [*TINY, *overrides] for part in ("--set", override)]
    return ["train", str(config), "--run-dir", str(run), *sets, *flags]


def train(
    folder: Path, world: int, overrides: Sequence[str] = (), *flags: str, **options: Any
) -> Started:
    """One more start of the run in `folder/run`, under way."""
    return Started(folder, world, train_arguments(folder / "run", overrides, *flags), **options)


def _one(variables: dict[str, str], arguments: list[str], output: str, prepare: bytes) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(variables)
    prepare_process()
    sys.argv = ["adrpo-scale", *arguments]
    try:
        prepared = pickle.loads(prepare)
        if prepared is not None:
            prepared(int(variables.get("RANK", 0)))
        from adrpo_scale.cli.main import main

        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)


# ---- what a run left ---------------------------------------------------------------------------

TIMES = ("seconds", "samples_per_second")
MEASURED = ("seconds", "peak_gb_")
SETS = ("policy", "exp_avg", "exp_avg_sq")


def timeless(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what a clock or the GPU's allocator measured: a start finds
    other memory in use."""
    return {n: v for n, v in line.items() if not (n.startswith(MEASURED) or n.endswith(TIMES))}


def committed_iterations(run: Path) -> list[int]:
    return sorted(committed(run / CHECKPOINTS))


def newest(run: Path) -> Reader:
    return Reader(committed(run / CHECKPOINTS)[committed_iterations(run)[-1]])


def records_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in start_records(run)]


def assert_close_runs(run: Path, other: Path) -> None:
    """Counters and prompts equal; parameters and moments but for rounding, with which all steps of
    both were made."""
    one, two = newest(run), newest(other)
    for name in ("counters", "optimizer_steps", "prompts", "identity"):
        assert one.manifest.document[name] == two.manifest.document[name], name
    assert one.manifest.sets.keys() == two.manifest.sets.keys()
    names = [name for name in (*SETS, "reference") if name in one.manifest.sets]
    sets = [
        {name: {n: r.whole(n, name) for n in r.names(name)} for name in names} for r in (one, two)
    ]
    steps = max(two.manifest.document["optimizer_steps"].values())
    rate = json.loads((other / "config.json").read_text())["optimizer"]["learning_rate"]
    found, expected = sets
    for name in names:
        if name in ("policy", "reference"):
            assert_adam_near(found[name], expected[name], expected["exp_avg_sq"], rate, steps)
    for name in ("exp_avg", "exp_avg_sq"):
        a, b = (torch.cat([t.flatten() for t in s[name].values()]) for s in sets)
        assert float((a - b).norm()) == drifted(0.0, steps, terms=float(b.norm())), name
    for mine, theirs in zip(records(run), records(other), strict=True):
        assert mine["reward"] == drifted(theirs["reward"], steps, terms=1.0)


def differences(run: Path, other: Path) -> list[str]:
    """What two runs do not have in common, to the bit: parameters, moments, average, counters,
    reward statistics, lines of metrics.jsonl, eval.jsonl and eval_prompts.jsonl. [] where they are
    the same."""
    one, two = newest(run), newest(other)
    found = [f"faults: {fault}" for reader in (one, two) for fault in reader.faults()]
    for name in ("counters", "rewards", "optimizer_steps", "identity", "prompts", "base"):
        if one.manifest.document[name] != two.manifest.document[name]:
            found.append(name)
    if {k: set(v) for k, v in one.manifest.sets.items()} != {
        k: set(v) for k, v in two.manifest.sets.items()
    }:
        return [*found, "names of tensors"]
    for kind, tensors in one.manifest.sets.items():
        for name in tensors:
            if not torch.equal(one.whole(name, kind), two.whole(name, kind)):
                found.append(f"{kind}/{name}")
    if [timeless(line) for line in records(run)] != [timeless(line) for line in records(other)]:
        found.append("metrics.jsonl")
    for name in ("eval.jsonl", "eval_prompts.jsonl"):
        texts = [file.read_text() if file.exists() else "" for file in (run / name, other / name)]
        found += [] if texts[0] == texts[1] else [name]
    return found
