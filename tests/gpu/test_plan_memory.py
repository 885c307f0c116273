"""What `plan` predicts of one GPU against what torch's allocator says, within a tenth.

The logic can be tried without a GPU, on few layers and with the bytes that live tensors have:

    python -m tests.gpu.test_plan_memory
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from adrpo_scale.cluster.plan.base import Hardware, Plan
from adrpo_scale.cluster.plan.hardware import GPUS
from adrpo_scale.cluster.plan.measure import Live
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import load_config
from adrpo_scale.training.trainer import Trainer
from benchmarks import omni_7b, qwen3_0_6b, sd3_medium
from benchmarks.sd3_medium import iterations_peak_gib
from tests.support.tiny_audio import save_prompts

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 0.1
TEMPLATE = 14  # tokens of the small chat template around a clip, with a question of two words
ALONE = ["engine.shard=1", "evaluation.every=0", "checkpoint.keep_best=0", "iterations=3"]
ALONE += ["limits={}", "logging.pictures_every=0"]


def sd3_config(folder: Path, layers: int, clip_layers: int, vae: tuple[int, ...]) -> RunConfig:
    sd3_medium.write_pipeline(folder / "pipeline", layers, vae)
    sd3_medium.write_clip(folder / "clip", clip_layers)
    settings = [f"domain.model={folder / 'pipeline'}", f"rewards.0.model={folder / 'clip'}"]
    # Few: without a GPU their embeddings, which lie on the CPU, would be counted.
    (folder / "prompts.txt").write_text("a red ring\na blue square\na green triangle\n")
    settings += [f"prompts={{train='{folder}/prompts.txt', per_iteration=2}}"]
    settings += ["prompts.group_size=16", *ALONE]
    return load_config(Path("configs/sd3/adrpo.toml"), settings).config


def qwen3_config(folder: Path, layers: int, vocabulary: int, tokens: int = 128) -> RunConfig:
    """Every prompt about as long as the config allows, as plan takes it to be."""
    qwen3_0_6b.write_model(folder, layers, vocabulary)
    qwen3_0_6b.write_prompts(folder / "prompts.jsonl", tokens)
    settings = [
        f"domain.model={folder}",
        f"domain.chat.max_prompt_tokens={tokens}",
        "domain.chat.thinking=null",
        f"domain.rollout.max_new_tokens={4 * tokens}",
        f"prompts={{train='{folder}/prompts.jsonl', per_iteration=4}}",
        "prompts.group_size=8",
        "rewards=[{kind='function', path='benchmarks.qwen3_0_6b:different_words'}]",
        *ALONE,
    ]
    return load_config(Path("configs/qwen/qwen3_0.6b_grpo.toml"), settings).config


def omni_config(folder: Path, layers: int, vocabulary: int, seconds: float = 10.0) -> RunConfig:
    """Every prompt as long as the config allows, as plan takes it to be. A folder that is there is
    a model that was written before."""
    if not folder.exists():
        omni_7b.write_model(partial := folder.with_suffix(".partial"), layers, vocabulary)
        partial.rename(folder)
        gc.collect()  # 17 GB that were only to be written
    tokens = round(25 * seconds)
    save_prompts(folder / "prompts.jsonl", ["w1 w2", "w3 w4"], [seconds, seconds])
    settings = [
        f"domain.model={folder}",
        f"domain.chat.max_prompt_tokens={tokens + TEMPLATE}",
        f"domain.rollout.max_new_tokens={tokens}",
        f"prompts={{train='{folder}/prompts.jsonl', per_iteration=2}}",
        "prompts.group_size=8",
        "optimizer.micro_batch=4",
        "rewards=[{kind='function', path='benchmarks.omni_7b:even_tokens'}]",
        *ALONE,
    ]
    return load_config(Path("configs/omni/avqa_grpo.toml"), settings).config


def planned(config: RunConfig) -> Plan:
    return plan_of(config, Hardware(GPUS["h200"], 1, 1, 1e10))


def compare(
    config: RunConfig,
    folder: Path,
    then: Callable[[Trainer, Plan], None] | None = None,
    *,
    plan: Plan | None = None,
    each: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, Any]:
    """Bytes: predicted, and measured over two iterations after the run is loaded; the lines of
    both. then: called with the trainer and its plan at the end. plan: that of `planned`, by default
    made here. each: called with every line, as it is there."""
    cuda = torch.cuda.is_available()
    plan = plan or planned(config)
    predicted = {m.phase: m.bytes for m in plan.memory if m.phase != "load"}
    trainer = None
    with nullcontext() if cuda else Live() as live:
        trainer = build_trainer(config, folder / "run")
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            unmap(trainer)
            live.peak = live.now
        with trainer.log:
            lines = []
            for _ in range(2):
                lines.append(trainer._iterate())
                each(lines[-1])
        # An iteration begins a new peak with every phase: the last one's says nothing of others.
        measured = int(2**30 * iterations_peak_gib(lines)) if cuda else live.peak
    if then is not None:
        then(trainer, plan)
    found = {"predicted": max(predicted.values()), "measured": measured, "by_phase": predicted}
    return {**found, "lines": lines}


def unmap(trainer: Any) -> None:
    """Weights that are mapped from their file, as a CPU's are, would count nothing."""
    for reward in trainer.rollouts.rewards:
        encoder = getattr(reward, "_encoder", None)
        if encoder is not None:
            encoder._model._apply(torch.clone)
    tower = getattr(trainer.domain, "_tower", None)
    if tower is not None:
        tower._apply(torch.clone)


def assert_near(found: dict[str, Any]) -> None:
    print(json.dumps(found, indent=2))
    ratio = found["predicted"] / found["measured"]
    assert abs(ratio - 1) < TOLERANCE, f"predicted / measured = {ratio:.3f}"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_the_peak_of_sd3_lora(checkpointing: str, tmp_path: Path) -> None:
    config = sd3_config(tmp_path, 24, 24, (128, 256, 512, 512))
    data = config.engine.model_copy(update={"activation_checkpointing": checkpointing == "true"})
    assert_near(compare(config.model_copy(update={"engine": data}), tmp_path))


@pytest.mark.timeout(900)
def test_the_peak_of_qwen3_0_6b_full(tmp_path: Path) -> None:
    config = qwen3_config(tmp_path, 28, int(qwen3_0_6b.SHAPE["vocab_size"]))
    assert_near(compare(config, tmp_path))


@pytest.mark.timeout(900)
def test_the_peak_of_omni_7b_lora(tmp_path: Path) -> None:
    """On a GPU of 48 GB or more: the whole thinker, and the whole audio tower."""
    assert_near(compare(omni_config(tmp_path / "omni", 28, 152064), tmp_path))


def dry_run() -> None:
    """All on the CPU, on layers of the real widths."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "qwen").mkdir()
        config = qwen3_config(folder / "qwen", 2, 8192, tokens=16)
        assert_near(compare(config, folder / "qwen"))
        config = sd3_config(folder / "sd3", 1, 1, (32, 32, 32, 32))
        small = {"height": 64, "width": 64, "max_sequence_length": 16}
        solver = config.domain.rollout.model_copy(update={"steps": 2})
        domain = config.domain.model_copy(update={**small, "rollout": solver})
        assert_near(compare(config.model_copy(update={"domain": domain}), folder / "sd3"))
        assert_near(compare(omni_config(folder / "omni", 2, 8192, seconds=2.0), folder / "omni"))


if __name__ == "__main__":
    dry_run()
