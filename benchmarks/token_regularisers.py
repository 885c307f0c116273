"""Regularisers on a reward model that can be hacked: docs/results/token-regularisers.md.

    python -m benchmarks.token_regularisers --to runs/tokens [--at-once 2] [--part 1/4] [--why]
    python -m benchmarks.token_regularisers --list [--cells "choose.tanh-*"]
    python -m benchmarks.token_regularisers --to runs/tokens --table

A run trains the base of `demo:text_rm` for 120 iterations with one of `SETTINGS` and is measured
after 100, 110 and 120 on 256 prompts × 2 samples with fixed noise: reward, gold score, the score of
the other reward model, and k3 to the base, the same for every estimator in the loss. Each setting
runs with five seeds in each of three stages, which share no seed or prompt where that would let a
choice leak into a report:

    stage    trained on              seeds    prompts
    choose   the demo's reward model 0 to 4   A
    report   the demo's reward model 5 to 9   B
    second   another reward model    5 to 9   B

First run `choose` and the constants of both reports, which are the front; then of each family the
setting that `choose` has chosen. `--why` does the same for k2 and the exact KL. Constants that are
points of the front alone leave `choose` out. The other reward model is built by
the demo's builder from seed 1, over the same base, once in the folder. A and B have 256 prompts
each; neither shares a thing with a set of aspects with the other, or with the prompts of training.
`--to` keeps a file for each run: a finished run is read, not repeated. `--part i/n` takes every
n-th run. `--table` runs nothing; it prints the tables of what is there, and writes them, all
numbers in one file and a figure.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adrpo_scale.core.files import replace_file
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.demo.text import rm_task
from benchmarks.cells import in_processes
from benchmarks.token_cells import (
    ITERATIONS,
    MEASURED,
    PROMPTS,
    SAMPLES,
    SETTINGS,
    Cell,
    cells,
    first_round,
    prompts_of,
    second_round,
)


def build_second(to: Path) -> None:
    """The second reward model: the demo's recipe, base and prompts, another seed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from adrpo_scale.demo.text.build import build_review_reward

    base, seed, begin = resolve_path("demo:text_rm"), 1, time.process_time()
    policy, tokenizer = (c.from_pretrained(base) for c in (AutoModelForCausalLM, AutoTokenizer))
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made, rng = Path(folder) / "made", np.random.default_rng(seed + 1)
        train, _ = rm_task.split_prompts()
        build_review_reward(policy.eval(), tokenizer, train, made, seed, rng)
        made.rename(to)
    print(f"second reward model: {time.process_time() - begin:.0f} CPU-seconds")


USES = (("reward_model", "training"), ("other", "evaluation"))


def reward_models(stage: str, to: Path) -> list[str]:
    """[trained on, only looked at]."""
    both = ["demo:text_rm/reward_model", str((to / "reward_model_2").resolve())]
    return both[::-1] if stage == "second" else both


def config_of(cell: Cell, to: Path) -> Any:
    from adrpo_scale.run.load import load_config

    trained, other = (
        f"{{kind='reward_model',name='{name}',model='{model}',dtype='float32',batch=256,use='{use}'}}"
        for (name, use), model in zip(USES, reward_models(cell.stage, to), strict=True)
    )
    gold = "{kind='demo_gold',name='gold',use='evaluation'}"
    kind = "A" if cell.stage == "choose" else "B"
    settings = [
        f"rewards=[{trained},{other},{gold}]",
        f"seed={cell.seed}",
        f"iterations={ITERATIONS}",
        f"prompts.held_out={to / f'prompts-{kind}.jsonl'}",
        *("evaluation.every=0", f"evaluation.prompts={PROMPTS}"),
        f"evaluation.samples_per_prompt={SAMPLES}",
        *("logging.completions_every=0", "logging.histograms_every=0"),
        *("checkpoint.every_minutes=0", "checkpoint.every_iterations=1000000"),
        *(cell.setting.overrides if cell.setting else []),
    ]
    return load_config(Path("configs/demo/text_rm_grpo.toml"), settings).config


def built(cell: Cell, to: Path, run: Path) -> Any:
    from adrpo_scale.run.build import build_trainer

    trainer = build_trainer(config_of(cell, to), run)
    trainer.domain.evaluations = ("evaluation",)  # greedy completions would be a third of the time
    return trainer


def digest(to: Path) -> str:
    data = (to / "reward_model_2" / "model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]


def run_cell(cell: Cell, to: Path) -> None:
    """Trains and measures one run in this process; writes its file."""
    torch.set_num_threads(1)
    begin, measured = time.process_time(), {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = built(cell, to, Path(folder))
        for last in MEASURED if cell.setting else (0,):
            if cell.setting:
                trainer.train(last)
            result = trainer.evaluator.evaluate(trainer.policy, trainer.references.base, "held_out")
            measured[last] = {name: value for name, (value, _) in result.metrics.items()}
        lines = Path(folder) / "metrics.jsonl"
        rows = [json.loads(row) for row in lines.read_text().splitlines()] if cell.setting else []
    kept = ("iteration", "reward", "divergence", "beta0", "beta_mean", "entropy", "grad_norm")
    document = {
        "cell": {**asdict(cell), "name": cell.name},
        "iterations": ITERATIONS,
        "measured": measured,
        "training": [{k: row[k] for k in kept if k in row} for row in rows[9::10]],
        "second_reward_model": digest(to),
        "torch": torch.__version__,
        "cpu_seconds": round(time.process_time() - begin, 2),
    }
    replace_file(file_of(cell, to), (json.dumps(document) + "\n").encode(), durable=False)


def file_of(cell: Cell, to: Path) -> Path:
    return to / "cells" / f"{cell.name}.json"


def in_child(cell: Cell, to: Path) -> None:
    """`run_cell`, its output in a log beside its file."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from adrpo_scale.core.console import console

    path = file_of(cell, to).with_suffix(".log")
    with path.open("w") as log:
        sys.stdout = sys.stderr = console.file = log
        run_cell(cell, to)
    path.unlink()  # kept where the run fails


def run_all(todo: Sequence[Cell], at_once: int, to: Path) -> list[Cell]:
    """Runs cells, each in a process forked from this one; returns those that failed."""
    fork, failed, begin = multiprocessing.get_context("fork"), [], time.monotonic()
    ended = in_processes(fork, in_child, todo, to, at_once)
    for done, (cell, code) in enumerate(ended, 1):
        failed += [cell] if code else []
        word, passed = f"FAILED ({code})" if code else "done", time.monotonic() - begin
        print(f"{done} of {len(todo)}, {cell.name}: {word}, {passed:.0f} s", flush=True)
    return failed


def prepare(to: Path) -> None:
    """Writes what every cell reads, and imports what every cell imports."""
    (to / "cells").mkdir(parents=True, exist_ok=True)
    for kind, stage in (("A", "choose"), ("B", "report")):
        lines = [json.dumps({"prompt": text}) + "\n" for text in prompts_of(stage)]
        replace_file(to / f"prompts-{kind}.jsonl", "".join(lines).encode(), durable=False)
    if not (to / "reward_model_2").is_dir():
        build_second(to / "reward_model_2")
    import torch.utils.tensorboard  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        built(Cell("second", SETTINGS[0], 5), to, Path(folder))


def rounds(arguments: argparse.Namespace) -> Iterator[list[Cell]]:
    """The runs that need no choice; then, when those are there, the chosen settings."""
    if arguments.cells:
        yield [c for c in cells() if any(fnmatch(c.name, form) for form in arguments.cells)]
        return
    first = first_round(arguments.why)
    yield first
    if missing := [cell.name for cell in first if not file_of(cell, arguments.to).is_file()]:
        sys.exit(
            f"{len(missing)} runs of other parts are missing, {missing[0]} among them: copy them"
        )
    from benchmarks.token_tables import chosen, read, runs_of

    found = chosen(runs_of(read(arguments.to))).values()
    yield second_round([s for s in found if (s.estimator != "k3") == arguments.why])


def stopped(*_: object) -> None:
    sys.exit(143)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("runs/token-regularisers"))
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument("--part", default="1/1", help="i/n: every n-th run from the i-th on")
    parser.add_argument("--cells", nargs="*", help="these runs alone, by patterns of their names")
    parser.add_argument("--why", action="store_true", help="the runs of k2 and of the exact KL")
    parser.add_argument("--list", action="store_true", help="print all runs there can be, and end")
    parser.add_argument("--table", action="store_true", help="print the tables and end")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(cell.name for cell in cells()))
        return
    if arguments.table:
        from benchmarks.token_tables import write_all

        print(write_all(arguments.to))
        return
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGTERM, stopped)
    for some in rounds(arguments):
        first, parts = map(int, arguments.part.split("/"))
        mine = some[first - 1 :: parts]
        todo = [cell for cell in mine if not file_of(cell, arguments.to).is_file()]
        print(f"{len(mine)} runs, {len(mine) - len(todo)} of them there", flush=True)
        prepare(arguments.to)
        if failed := run_all(todo, arguments.at_once, arguments.to):
            sys.exit(f"{len(failed)} failed, their logs lie in {arguments.to / 'cells'}")


if __name__ == "__main__":
    main()
