"""CPU-seconds of a GRPO iteration on clips: each clip encoded once, against once per sample.

    python -m benchmarks.audio_encoding [--rounds 5]

One process, one thread, LoRA on a small Qwen2.5-Omni with random weights whose audio tower has a
twelfth of the language model's parameters, as in the 7B model; two clips of 4 s, groups of eight.
Iterations of both kinds alternate; the figure is the median of their ratio over the rounds. "Once
per sample" reads, transforms and encodes the clip of every row, in the rollout and in each pass of
policy and reference. The passes of the language model are the same in both.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.run.build import build_trainer
from tests.support.tiny_audio import SIZES, audio_config, save_prompts, save_thinker

LARGER: dict[str, dict[str, Any]] = {
    "text_config": {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "initializer_range": 0.02,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [16, 8, 8],
        },
    },
    "audio_config": {
        "d_model": 96,
        "encoder_layers": 4,
        "encoder_attention_heads": 4,
        "encoder_ffn_dim": 384,
        "n_window": 100,
        "max_source_positions": 100,
        "output_dim": 256,
        "initializer_range": 0.02,
    },
    "vision_config": {"out_hidden_size": 256},
}
SETTINGS = [
    "domain.chat.max_prompt_tokens=128",
    "domain.rollout.max_new_tokens=32",
    "prompts.per_iteration=2",
    "prompts.group_size=8",
    "optimizer.micro_batch=8",
    "optimizer.learning_rate=1e-9",  # completions keep their lengths
    "iterations=1000",
    "algorithm={name='grpo', beta0=0.04, scale='group_std'}",
]


@contextmanager
def once_per_sample(domain: AudioDomain) -> Iterator[None]:
    shared = domain._audio

    def apart(prompt_ids: Any) -> Any:
        for prompt_id in prompt_ids:
            domain._encode(domain._prompts[prompt_id])
        return shared(prompt_ids)

    with mock.patch.object(domain, "_audio", apart):
        yield


def seconds(trainer: Any) -> float:
    trainer.domain._encoded.clear()
    begin = time.process_time()
    trainer._iterate()
    return time.process_time() - begin


def build(place: Path) -> Any:
    sizes = {name: SIZES[name] | LARGER[name] for name in SIZES}
    with mock.patch.dict(SIZES, sizes):
        folder = save_thinker(place / "model")
    save_prompts(folder / "prompts.jsonl", ["w1 w2", "w3 w4"], [4.0, 3.9])
    return build_trainer(audio_config(folder, SETTINGS), place / "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        trainer = build(Path(place))
        parts = {"language": trainer.policy, "tower": trainer.domain._tower}
        sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in parts.items()}
        once, apart = [], []
        with trainer.log:
            seconds(trainer)  # the first call fills caches
            for _ in range(rounds):
                once.append(seconds(trainer))
                with once_per_sample(trainer.domain):
                    apart.append(seconds(trainer))
    ratios = [a / b for a, b in zip(apart, once, strict=True)]
    print(
        json.dumps(
            {
                "parameters": sizes,
                "cpu_seconds_once_per_clip": round(statistics.median(once), 3),
                "cpu_seconds_once_per_sample": round(statistics.median(apart), 3),
                "ratio": round(statistics.median(ratios), 2),
                "ratios": [round(ratio, 2) for ratio in sorted(ratios)],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
