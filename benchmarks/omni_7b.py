"""A Qwen2.5-Omni-7B-shaped thinker with random weights: one LoRA iteration on clips under 48 GB.

    python -m benchmarks.omni_7b [--iterations 2] [--set section.key=value]

Writes a real thinker folder (28 layers, 152,064 words, 32 layers of audio tower, bfloat16; 17 GB)
whose completions never end, so all have --new-tokens tokens. Then runs GRPO with adapters of rank
32 on P = 2 clips of --seconds and G = 8. The process may use at most --cap-gib of the GPU. The
vision tower, which is never built, is written with one layer.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration, WhisperFeatureExtractor

from adrpo_scale.run.build import build_trainer
from benchmarks.qwen3_0_6b import device_name
from benchmarks.sd3_medium import iterations_peak_gib
from tests.support import tiny_audio
from tests.support.tiny_audio import audio_config, save_prompts, tiny_config, tiny_processor

PROMPTS, GROUP = 2, 8
VISION = {"depth": 1, "fullatt_block_indexes": [0]}


def even_tokens(completions: list[Any], prompts: list[Any]) -> list[float]:
    return [sum(token % 2 == 0 for token in c.tokens) / len(c.tokens) for c in completions]


def write_model(folder: Path, layers: int, vocabulary: int) -> None:
    """Writes a thinker folder. Unstated sizes are transformers' defaults, those of the 7B model."""
    text = {"num_hidden_layers": layers, "vocab_size": vocabulary, "tie_word_embeddings": False}
    sizes = {
        "text_config": text | {"rope_parameters": _rope()},
        "audio_config": {"encoder_layers": min(32, layers + 4)},
        "vision_config": VISION,
    }
    torch.manual_seed(0)
    with mock.patch.dict(tiny_audio.SIZES, sizes):
        config = tiny_config()
    config.initializer_range = 0.02  # so small that no token is likely, including the end token
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen2_5OmniThinkerForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16
        )
    model.save_pretrained(folder)
    processor = tiny_processor()
    processor.feature_extractor = WhisperFeatureExtractor(
        feature_size=128, chunk_length=300, return_attention_mask=True
    )
    processor.save_pretrained(folder)


def _rope() -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def settings(arguments: argparse.Namespace) -> list[str]:
    prompt = round(25 * arguments.seconds) + 32
    return [
        f"domain.chat.max_prompt_tokens={prompt}",
        f"domain.rollout.max_new_tokens={arguments.new_tokens}",
        f"domain.rollout_chunk={GROUP}",
        f"prompts.per_iteration={PROMPTS}",
        f"prompts.group_size={GROUP}",
        "rewards=[{kind='function', path='benchmarks.omni_7b:even_tokens'}]",
        "optimizer.micro_batch=4",
        "algorithm={name='grpo', beta0=0.04, scale='group_std'}",
        "engine.dtype=bfloat16",
        "engine.activation_checkpointing=true",
        "iterations=100",
        *arguments.overrides,
    ]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        write_model(folder, arguments.layers, arguments.vocabulary)
        save_prompts(folder / "prompts.jsonl", ["w1 w2", "w3"], [arguments.seconds] * PROMPTS)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            whole = torch.cuda.get_device_properties(0).total_memory
            cap = arguments.cap_gib * 2**30 / whole
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap))
            torch.cuda.reset_peak_memory_stats()
        trainer = build_trainer(audio_config(folder, settings(arguments)), Path(name) / "run")
        with trainer.log:
            records = [trainer._iterate() for _ in range(arguments.iterations + 1)][1:]
        made = [r["completion_tokens"] * r["samples"] for r in records]

        def per_second(phase: str) -> float:
            rates = [n / r[f"seconds_{phase}"] for n, r in zip(made, records, strict=True)]
            return statistics.median(rates)

        return {
            "device": device_name(),
            "torch": torch.__version__,
            "cap_gib": arguments.cap_gib,
            "overrides": arguments.overrides,
            "parameters": sum(p.numel() for p in trainer.policy.parameters()),
            "trained": sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad),
            "tower": sum(p.numel() for p in trainer.domain._tower.parameters()),
            "clip_tokens": len(trainer.domain._of(0).audio),
            "completion_tokens": statistics.median(r["completion_tokens"] for r in records),
            "rollout_tokens_per_second": per_second("rollout"),
            "update_tokens_per_second": per_second("update"),
            "peak_gib": iterations_peak_gib(records) if torch.cuda.is_available() else None,
            "grad_norm": records[-1]["grad_norm"],
        }


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--iterations", type=int, default=1)
    result.add_argument("--new-tokens", type=int, default=256)
    result.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    result.add_argument("--cap-gib", type=float, default=44.7, help="44.7: an A6000's 48 GB")
    result.add_argument("--layers", type=int, default=28, help="fewer for a dry run without a GPU")
    result.add_argument("--vocabulary", type=int, default=152064)
    result.add_argument("--set", dest="overrides", action="append", default=[])
    return result


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args()), indent=2))
