"""Runs on clips that are exported: how they are trained, what is asked of their folders."""

from __future__ import annotations

import json

import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.run.build import build_trainer
from tests.support.tiny_audio import audio_config, save_full, save_prompts

SECRET = "ada-lovelace"  # part of every path of this file: no export may tell it
LORA = ["domain.lora.rank=4", "domain.lora.alpha=6"]
FULL = ["domain.train=full"]
THINKER, WHOLE = (
    "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration",
)
SYSTEM = 'w20 "w21" {{ w22 }}'


# ---- what is exported ----------------------------------------------------------------------------


def save_base(to):
    """A whole checkpoint as a download has it: in bfloat16 but for what speaks, with more files."""
    save_full(to)
    for file in to.glob("*.safetensors"):
        stored = {
            name: tensor if name.startswith("token2wav.") else tensor.to(torch.bfloat16)
            for name, tensor in load_file(file).items()
        }
        save_file(stored, file, {"format": "pt"})
    (to / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (to / "LICENSE").write_text("The terms of the tiny model.\n")
    (to / "pytorch_model.bin").write_bytes(b"a pickle")
    (to / "voices").mkdir()
    (to / "voices" / "notes.txt").write_text("two voices\n")
    (to / ".cache").mkdir()
    (to / ".cache" / "trace").write_text("of the download\n")
    config = json.loads((to / "config.json").read_text())
    config |= {"torch_dtype": "bfloat16", "_name_or_path": f"/home/{SECRET}/omni"}
    (to / "config.json").write_text(json.dumps(config))


def train_run(root, name, base, settings, trained=True):
    run = root / "runs" / name
    run.mkdir(parents=True)
    if not (root / "prompts.jsonl").exists():
        save_prompts(root / "prompts.jsonl")
    overrides = [f"prompts.train={root / 'prompts.jsonl'}", "optimizer.learning_rate=1e-2"]
    greedy = ["domain.evaluation.temperature=0"]
    # A prompt file in the model's folder would be a file of the model's.
    (root / base / "prompts.jsonl").touch()
    config = audio_config(root / base, [*overrides, *greedy, *settings])
    (root / base / "prompts.jsonl").unlink()
    trainer = build_trainer(config, run)
    if trained:
        trainer.train()
    trainer.saver.save_now()
