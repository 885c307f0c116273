"""A Qwen3-0.6B-shaped model with random weights: tokens/s of rollout and update, memory, MFU.

    python -m benchmarks.qwen3_0_6b [--iterations 2] [--trl] [--set section.key=value]

Writes a real Qwen3 folder (28 layers, 151,936 words, bfloat16) in which the end token is unlikely,
so every completion has --new-tokens tokens. Then runs GRPO with P = 4 prompts of --prompt-tokens
and G = 8, all parameters trained. --trl then measures TRL's GRPOTrainer with its default rollout on
the same model, prompts and lengths, in the same process. MFU counts policy forward and backward and
the reference's forward (8 · parameters FLOPs per token, without attention) over `seconds_update`.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import load_config
from benchmarks.sd3_medium import PEAK, iterations_peak_gib
from tests.support.tiny_text import tiny_tokenizer

SHAPE = {
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
PROMPTS, GROUP = 4, 8


def different_words(completions: list[Any], prompts: list[Any]) -> list[float]:
    return [len(set(c.tokens)) / len(c.tokens) for c in completions]


def write_model(folder: Path, layers: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(**SHAPE | {"num_hidden_layers": layers, "vocab_size": vocabulary})
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def write_prompts(path: Path, tokens: int) -> list[str]:
    """Writes and returns prompts of about `tokens` tokens each, including the chat template."""
    texts = [" ".join(f"w{(i * 7 + p) % 50}" for i in range(tokens - 6)) for p in range(PROMPTS)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return texts


def ours(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    config = load_config(
        Path("configs/qwen/qwen3_0.6b_grpo.toml"),
        [
            f"domain.model={folder}",
            f"domain.rollout.max_new_tokens={arguments.new_tokens}",
            f"domain.rollout_chunk={PROMPTS * GROUP}",
            f"prompts={{train='{folder}/prompts.jsonl', per_iteration={PROMPTS}}}",
            f"prompts.group_size={GROUP}",
            "rewards=[{kind='function', path='benchmarks.qwen3_0_6b:different_words'}]",
            "evaluation.every=0",
            "engine.shard=1",
            "domain.chat.thinking=null",
            *arguments.overrides,
        ],
    ).config
    trainer = build_trainer(config, folder / "run")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with trainer.log:
        records = [trainer._iterate() for _ in range(arguments.iterations + 1)][1:]
    parameters = sum(p.numel() for p in trainer.policy.parameters())
    made = [r["completion_tokens"] * r["samples"] for r in records]
    update = statistics.median(r["seconds_update"] for r in records)
    passed = PROMPTS * GROUP * (arguments.new_tokens + arguments.prompt_tokens)
    peak = next((v for k, v in PEAK.items() if k in device_name()), None)
    flops = 8 * parameters * passed / update
    return {
        "rollout_tokens_per_second": statistics.median(
            n / r["seconds_rollout"] for n, r in zip(made, records, strict=True)
        ),
        "update_tokens_per_second": statistics.median(
            n / r["seconds_update"] for n, r in zip(made, records, strict=True)
        ),
        "seconds_rollout": statistics.median(r["seconds_rollout"] for r in records),
        "seconds_update": update,
        "completion_tokens": statistics.median(r["completion_tokens"] for r in records),
        "peak_gib": iterations_peak_gib(records) if torch.cuda.is_available() else None,
        "parameters": parameters,
        "update_tflops": flops / 1e12,
        "update_mfu": flops / peak if peak else None,
        "logp_check": records[-1]["divergence"],
    }


def theirs(folder: Path, texts: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - self.begin)

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [len(set(ids)) / len(ids) for ids in completion_ids]

    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        report_to="none",
        save_strategy="no",
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=True,
        max_steps=arguments.iterations + 1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=PROMPTS * GROUP // 4,
        num_generations=GROUP,
        max_completion_length=arguments.new_tokens,
        learning_rate=1e-6,
        beta=0.04,
        loss_type="grpo",
        disable_tqdm=True,
    )
    messages = [{"prompt": [{"role": "user", "content": text}]} for text in texts]
    gc.collect()  # frees the previous model, whose parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    trainer = GRPOTrainer(
        model=str(folder),
        args=settings,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(messages * 8),
        processing_class=tiny_tokenizer(),
        callbacks=[Clock()],
    )
    trainer.train()
    seconds = statistics.median(times[1:])
    made = PROMPTS * GROUP * arguments.new_tokens
    return {
        "seconds_step": seconds,
        "tokens_per_second": made / seconds,
        "peak_gib": peak_gib(),
    }


def device_name() -> str:
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, arguments.layers, arguments.vocabulary)
        texts = write_prompts(folder / "prompts.jsonl", arguments.prompt_tokens)
        result: dict[str, Any] = {
            "device": device_name(),
            "torch": torch.__version__,
            "new_tokens": arguments.new_tokens,
            "overrides": arguments.overrides,
            "ours": ours(folder, arguments),
        }
        if arguments.trl:
            result["trl"] = theirs(folder, texts, arguments)
        return result


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__)
    result.add_argument("--iterations", type=int, default=2)
    result.add_argument("--new-tokens", type=int, default=512)
    result.add_argument("--prompt-tokens", type=int, default=128)
    result.add_argument("--layers", type=int, default=28, help="fewer for a dry run without a GPU")
    result.add_argument("--vocabulary", type=int, default=SHAPE["vocab_size"])
    result.add_argument("--trl", action="store_true", help="also measure TRL's GRPOTrainer")
    result.add_argument("--set", dest="overrides", action="append", default=[])
    return result


if __name__ == "__main__":
    print(json.dumps(measure(parser().parse_args()), indent=2))
