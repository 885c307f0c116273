"""Samples per CPU-second and peak memory of GRPO here and in TRL's GRPOTrainer, in one run.

    python -m benchmarks.trl_grpo [--rounds 8] [--vocabulary 151936] [--json FILE]

The same model, prompts (P = 8, G = 8), temperature, lengths, reward, learning rate and loss (group
advantages over their deviation, ratio clipped at .2, k3 with beta = .04 to a frozen copy, mean over
a completion, then over completions), 16 rows per forward and backward, float32, one thread, one
process each. The two alternate in blocks of steps; figures are medians over the rounds. Memory is
the peak of the resident set during the blocks, minus the resident set after loading.

--vocabulary sets the number of embedding rows, with random weights, to measure the cost of a real
tokenizer's vocabulary. Without it the demo's own model is trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PROMPTS, GROUP, NEW_TOKENS, RATE, BETA = 8, 8, 32, 1e-4, 0.04
ROWS = 16  # per forward and backward
Block = Callable[[int], None]  # runs that many optimizer steps


def memory(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def ours(model: str, prompts: str, folder: Path) -> Block:
    from adrpo_scale.run.build import build_trainer
    from adrpo_scale.run.load import load_config

    config = load_config(
        Path("configs/demo/text_grpo.toml"),
        [
            f"domain.model={model}",
            f"prompts.train={prompts}",
            "prompts.held_out=null",
            f"domain.rollout.max_new_tokens={NEW_TOKENS}",
            f"optimizer.learning_rate={RATE}",
            f"optimizer.micro_batch={ROWS}",
            f"prompts.per_iteration={PROMPTS}",
            f"prompts.group_size={GROUP}",
            "evaluation.every=0",
            "logging.completions_every=0",
        ],
    ).config
    trainer = build_trainer(config, folder)
    trainer.log.__enter__()

    def block(steps: int) -> None:
        for _ in range(steps):
            trainer._iterate()

    return block


def right_answers(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    from adrpo_scale.rewards.text import extract_answer, normalised

    found = [extract_answer(completion[0]["content"]) for completion in completions]
    pairs = zip(found, answer, strict=True)
    return [float(f is not None and normalised(f) == normalised(a)) for f, a in pairs]


def their_settings(folder: Path) -> Any:
    """GRPOConfig of the same loss, rows a pass and learning rate as ours."""
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=str(folder),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_steps=10**6,
        per_device_train_batch_size=ROWS,
        gradient_accumulation_steps=PROMPTS * GROUP // ROWS,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        temperature=1.0,
        top_k=0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        beta=BETA,
        epsilon=0.2,
        loss_type="grpo",
        num_iterations=1,
        use_bias_correction_kl=False,
        max_grad_norm=1.0,
    )


def theirs(model: str, prompts: str, folder: Path) -> Block:
    import threading

    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    from adrpo_scale.data.prompts import load_prompts
    from adrpo_scale.hub.weights import find_model

    place = str(find_model(model))
    rows = [
        {"prompt": p.conversation, "answer": p.metadata["answer"]} for p in load_prompts(prompts)
    ]
    turn, done = threading.Semaphore(0), threading.Semaphore(0)

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.acquire()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            done.release()

    trainer = GRPOTrainer(
        model=place,
        args=their_settings(folder),
        reward_funcs=right_answers,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(place),
        callbacks=[Turns()],
    )
    torch.set_num_threads(1)
    threading.Thread(target=trainer.train, daemon=True).start()

    def block(steps: int) -> None:
        for _ in range(steps):
            turn.release()
            done.acquire()

    return block


def work(kind: str, model: str, prompts: str) -> None:
    """The loop of a worker process: reads numbers of steps, and prints the costs of each block."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        block = {"ours": ours, "trl": theirs}[kind](model, prompts, Path(folder))
        resident = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        print("READY", flush=True)
        for line in sys.stdin:
            cpu = time.process_time()
            block(int(line))
            spent = time.process_time() - cpu
            print("RESULT", spent, memory("VmHWM") - resident, flush=True)


class Worker:
    def __init__(self, kind: str, model: str, prompts: str) -> None:
        command = [sys.executable, "-m", "benchmarks.trl_grpo", "--work", kind]
        self._process = subprocess.Popen(
            [*command, "--model", model, "--prompts", prompts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        next(self._lines("READY"))

    def _lines(self, word: str) -> Iterator[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(word):
                yield line

    def block(self, steps: int) -> tuple[float, int]:
        """(CPU-seconds, peak memory growth in bytes)."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        _, spent, grown = next(self._lines("RESULT")).split()
        return float(spent), int(grown)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def with_vocabulary(model: str, rows: int, folder: Path) -> str:
    """Writes a small Qwen3 with `rows` embedding rows and the demo's tokenizer; returns its
    folder."""
    import shutil

    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from adrpo_scale.hub.weights import find_model

    base = find_model(model)
    config = AutoConfig.from_pretrained(base)
    config.vocab_size = rows
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in base.glob("*token*"):
        shutil.copy(path, folder)
    for path in base.glob("*.jinja"):
        shutil.copy(path, folder)
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of a block")
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="demo:text")
    parser.add_argument("--prompts", default="demo:text/prompts/train.jsonl")
    parser.add_argument("--work", choices=["ours", "trl"])
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work, arguments.model, arguments.prompts)
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model
        if arguments.vocabulary:
            model = with_vocabulary(model, arguments.vocabulary, Path(folder))
        workers = {kind: Worker(kind, model, arguments.prompts) for kind in ("ours", "trl")}
        costs: dict[str, list[tuple[float, int]]] = {kind: [] for kind in workers}
        for round_ in range(arguments.rounds + 1):
            for kind, worker in workers.items():
                cost = worker.block(arguments.steps)
                if round_:  # the first one warms up
                    costs[kind].append(cost)
        for worker in workers.values():
            worker.end()
    samples = arguments.steps * PROMPTS * GROUP
    rates = {k: [samples / spent for spent, _ in v] for k, v in costs.items()}
    peaks = {k: max(grown for _, grown in v) for k, v in costs.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["trl"], strict=True)]
    result = {
        "vocabulary": arguments.vocabulary or "demo",
        "samples_per_cpu_second": {k: round(statistics.median(v), 2) for k, v in rates.items()},
        "ratio": [round(f(ratios), 3) for f in (statistics.median, min, max)],
        "peak_growth_mb": {k: round(v / 1e6, 1) for k, v in peaks.items()},
        "memory_ratio": round(peaks["ours"] / peaks["trl"], 3),
        "rounds": arguments.rounds,
        "steps_per_block": arguments.steps,
    }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
