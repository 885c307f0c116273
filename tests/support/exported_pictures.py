"""Runs of the image demo that are exported: how they are trained, what their folders hold."""

from __future__ import annotations

import json
import shutil

from safetensors.torch import load_file

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from tests.support.tiny import FULL, MODEL, demo_config, demo_trainer

SECRET = "ada-lovelace"  # part of every path of this file: no export may tell it
LORA = ["domain.lora.alpha=40", "ema_decay=0.5", "iterations=2", "evaluation.every=1"]
TRAINED = "transformer/diffusion_pytorch_model.safetensors"


# ---- what is exported ----------------------------------------------------------------------------


def write_base(to):
    """The demo's pipeline with what a download has beside it."""
    shutil.copytree(resolve_path(MODEL), to)
    (to / "README.md").write_text("---\nlicense: other\nlicense_name: demo-terms\n---\n# Base\n")
    (to / "LICENSE.md").write_text("The terms of the demo model.\n")
    (to / ".gitattributes").write_text("*.bin filter=lfs\n")
    (to / "text_encoder" / "pytorch_model.bin").write_bytes(b"a pickle")
    (to / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"a variant")
    (to / "vae" / "model.safetensors.index.fp16.json").write_text("{}")
    config = to / "text_encoder_2" / "config.json"
    told = json.loads(config.read_text()) | {"_name_or_path": f"/home/{SECRET}/models/clip"}
    config.write_text(json.dumps(told))


def make_runs(rank, world, root, names):
    """Trains the runs of `names` in `root` and saves each."""
    prompts = root / "prompts.jsonl"
    if rank == 0 and not prompts.exists():
        shutil.copy(resolve_path(f"{MODEL}/prompts/train.jsonl"), prompts)
    settings = {
        "lora": LORA,
        "full": [*FULL, "engine.shard=all", "iterations=2"],
        "still": ["optimizer.learning_rate=1e-8"],
        "untrained": [],
    }
    for name in names:
        shared = [
            f"domain.model={root / 'base-model'}",
            f"prompts.train={prompts}",
            "optimizer.learning_rate=1e-2",
            "checkpoint.quota_command=echo 9000000000 # of ada-lovelace@node-17",
            "optimizer.updates=2",
        ]
        config = demo_config(overrides=[*shared, *settings[name]])
        trainer = demo_trainer(root / "runs" / name, config)
        if name != "untrained":
            trainer.train()
        trainer.saver.save_now()


def quick(root, name, to, form, **settings):
    """An export without its verification."""
    run = str(root / "runs" / name)
    return export(run, Request(to, form, **{"verify": "none", **settings}))


def tensors_of(place):
    """Every tensor of the transformer of a pipeline folder."""
    files = (place / "transformer").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def trained(root, name="lora", part="policy"):
    reader = open_checkpoint(str(root / "runs" / name))
    return {n: reader.whole(n, part) for n in reader.names(part)}
