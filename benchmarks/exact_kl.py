"""CPU-seconds and peak memory of updates with the exact KL, beside k3, in one run.

    python -m benchmarks.exact_kl [--rounds 6] [--vocabulary 32000] [--json FILE]

A Qwen3 of random weights (hidden size 256, 4 layers) with the words of the text demo in a larger
vocabulary; 32 completions of 48 tokens, 16 rows a pass, `domain.head_chunk` 256, float32, one
process, one thread. Policy and reference differ. Updates with k3 and with the exact KL alternate;
the ratio is the median over the rounds. Memory is the peak of the tensors that an update makes,
counted in one more update of each.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.cluster.plan.measure import Live

HIDDEN, LAYERS, ROWS, TOKENS, AT_ONCE, CHUNK = 256, 4, 32, 48, 16, 256
KINDS, ESTIMATORS = ("full", "lora"), ("k3", "exact")


def model_folder(vocabulary: int, folder: Path) -> str:
    """Writes the model, with the tokenizer of the text demo."""
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    from adrpo_scale.hub.weights import find_model

    base = find_model("demo:text")
    config = AutoConfig.from_pretrained(base)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "vocab_size": vocabulary}
    for name, value in sizes.items():
        setattr(config, name, value)
    config.layer_types = config.layer_types[:1] * LAYERS
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for pattern in ("*token*", "*.jinja"):
        for path in base.glob(pattern):
            shutil.copy(path, folder)
    return str(folder)


def update_of(model: str, kind: str, estimator: str, folder: Path) -> Callable[[], None]:
    """One optimizer step on fixed rows, by the trainer's own domain, algorithm and engine."""
    from adrpo_scale.algorithms.base import plain_credit
    from adrpo_scale.core.types import DrawKey, Rewards, Rows
    from adrpo_scale.run.build import build_trainer
    from adrpo_scale.run.load import load_config

    settings = [
        f"domain.model={model}",
        f"domain.train={kind}",
        f"domain.rollout.max_new_tokens={TOKENS}",
        f"domain.head_chunk={CHUNK}",
        f'algorithm.kl_estimator="{estimator}"',
        "evaluation.every=0",
    ]
    trainer = build_trainer(
        load_config(Path("configs/demo/text_grpo.toml"), settings).config, folder
    )
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in trainer.engine.trained_slices().values():
            tensor += 0.02 * torch.randn(tensor.shape, generator=random)
    trainer.engine.publish()
    lengths = torch.full((AT_ONCE,), TOKENS)

    def rows() -> Rows:
        tokens = torch.randint(3, 40, (AT_ONCE, TOKENS), generator=random)
        tensors = {"completion": tokens, "lengths": lengths, "finished": torch.ones_like(lengths)}
        return Rows(torch.arange(AT_ONCE), torch.full((AT_ONCE,), trainer.domain._first), tensors)

    passes = [rows() for _ in range(ROWS // AT_ONCE)]
    total_PG = torch.rand(1, AT_ONCE, generator=random, dtype=torch.float64)
    mask_PG, ids_P = torch.ones_like(total_PG, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
    rewards = Rewards(["r"], torch.ones(1).double(), total_PG[None], total_PG, mask_PG, ids_P)
    credit = plain_credit(total_PG.flatten() - 0.5, 0.04, rewards)

    def update() -> None:
        for n, part in enumerate(passes):
            terms = trainer.domain.terms(
                trainer.policy,
                trainer.reference,
                part,
                part.sample_ids_N,
                DrawKey(0, 0),
                trainer.algorithm.wanted,
            )
            loss = trainer.algorithm.loss(terms, credit) / ROWS
            trainer.engine.backward(loss, last=n == len(passes) - 1)
        trainer.engine.step(1e-6)

    return update


def cpu_seconds(update: Callable[[], None]) -> float:
    begin = time.process_time()
    update()
    return time.process_time() - begin


def compared(model: str, kind: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        updates = {e: update_of(model, kind, e, Path(folder)) for e in ESTIMATORS}
        spent: dict[str, list[float]] = {estimator: [] for estimator in ESTIMATORS}
        for number in range(rounds + 1):
            for estimator, update in updates.items():
                seconds = cpu_seconds(update)
                spent[estimator] += [seconds] if number else []  # the first one warms up
        peaks = {}
        for estimator, update in updates.items():
            with Live() as live:
                update()
            peaks[estimator] = live.peak
    ratios = [a / b for a, b in zip(spent["exact"], spent["k3"], strict=True)]
    return {
        "cpu_seconds": {name: round(statistics.median(found), 3) for name, found in spent.items()},
        "ratio": [round(f(ratios), 3) for f in (statistics.median, min, max)],
        "peak_mb": {name: round(peak / 1e6, 1) for name, peak in peaks.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        model = model_folder(arguments.vocabulary, Path(folder))
        result = {
            "vocabulary": arguments.vocabulary,
            "rounds": arguments.rounds,
            "torch": torch.__version__,
            **{kind: compared(model, kind, arguments.rounds) for kind in KINDS},
        }
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
