"""Evaluations of pictures that run: a small run of the image demo, a file, and what it wrote."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import demo_config, demo_trainer

PROMPTS = [
    ("a yellow square", [("square", 1, "yellow")]),
    ("a red ring and a red triangle", [("ring", 1, "red"), ("triangle", 1, "red")]),
    ("a red ring and a green ring", [("ring", 1, "red"), ("ring", 1, "green")]),
]
CLIP = '[[scorers]]\nkind = "clip"\nmodel = "demo:image/reward_clip"\n'
CHECKER = '[[scorers]]\nkind = "glyph_checker"\nname = "checker"\n'


def small_run(folder: Path, seed: int = 0) -> Path:
    """A run of the demo with a checkpoint of iteration 0, whose adapters differ from the base."""
    config = demo_config(overrides=[f"seed={seed}"])
    trainer = demo_trainer(folder, config)
    random = torch.Generator().manual_seed(seed)
    for tensor in trainer.engine.trained_slices().values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=random)
    trainer.engine.publish()
    trainer.saver.save_now()
    (folder / "config.json").write_text(json.dumps(config.resolved()))
    return folder


def evaluation_file(folder: Path, models: str, scorers: str = CLIP + CHECKER, **sampling) -> Path:
    """The file of an evaluation of 3 prompts; by default 2 samples for each of 2 sampling seeds, in
    batches of 5, the last one not full. models: sections of TOML."""
    rows = [
        {
            "prompt": text,
            "tag": "demo",
            "include": [_object(*one) for one in objects],
        }
        for text, objects in PROMPTS
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"per_prompt": 2, "seeds": [0, 5], "batch": 5} | sampling
    text = f'benchmark = "images"\nto = "{folder / "to"}"\n'
    text += f'[prompts]\nname = "demo"\nfile = "{folder / "prompts.jsonl"}"\n[sampling]\n'
    text += "".join(f"{key} = {value}\n" for key, value in values.items())
    path = folder / "table.toml"
    path.write_text(f"{text}{scorers}{models}")
    return path


def _object(kind: str, count: int, color: str) -> dict[str, Any]:
    return {"class": kind, "count": count, "color": color}


def written(to: Path) -> dict[str, bytes]:
    """Every file of an evaluation but those of the clock."""
    left_out = ("timing.json", "lock.json")
    files = [path for path in sorted(to.rglob("*")) if path.is_file() and path.name not in left_out]
    return {path.relative_to(to).as_posix(): path.read_bytes() for path in files}


@dataclass
class DieAtWrite:
    """A signal, by default SIGKILL, half way through a process's write number `number`, of those
    that the package makes; `prepare` of `Started`."""

    number: int
    rank: int = 0
    signal: int = signal.SIGKILL
    count: int = 0

    def __call__(self, rank: int) -> None:
        if rank != self.rank:
            return
        real = os.write

        def write(descriptor: int, data: Any) -> int:
            self.count += 1
            if self.count == self.number:
                begun = real(descriptor, memoryview(data)[: len(data) // 2])
                os.kill(os.getpid(), self.signal)
                return begun
            return real(descriptor, data)

        os.write = write
