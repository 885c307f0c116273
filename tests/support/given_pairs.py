"""Runs of seconds on given pairs: the files, and configs as a user writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adrpo_scale.run.config import RunConfig
from tests.support.tiny import demo_config
from tests.support.tiny_text import save_tiny, text_config

GIVEN = ['algorithm.rollouts="file"', "rewards=[]", "prompts.group_size=2"]
PAIRS = [  # (prompt, chosen, rejected)
    ("w1 w2", "w3", "w4 w5"),
    ("w6", "w7 w8 w9", "w10"),
    ("w11 w12", "w13 w14", "w15 w16"),
    ("w17", "w18", "w19 w20 w21"),
    ("w22 w23", "w24 w25 w26", "w27"),
]


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(pairs: Sequence[Sequence[str]] = PAIRS) -> list[dict[str, Any]]:
    return [dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs]


def text_pairs(folder: Path, *more: str, name: str = "dpo") -> RunConfig:
    """A run of the tiny model on PAIRS; files that are there stay."""
    if not (folder / "config.json").exists():
        save_tiny(folder)
    if not (folder / "prompts.jsonl").exists():
        save_rows(folder / "prompts.jsonl", rows_of())
    beta = ", beta=0.1" if name == "dpo" else ""
    algorithm = f'algorithm={{name="{name}", rollouts="file"{beta}}}'
    return text_config(folder, [algorithm, *GIVEN[1:], *more])


def save_pictures(folder: Path, count: int = 5) -> Path:
    """Pairs of pictures of noise, wider than those of the demo."""
    folder.mkdir(parents=True, exist_ok=True)
    random, rows = np.random.default_rng(0), []
    for n in range(count):
        names = [f"{side}-{n}.png" for side in ("a", "b")]
        for name in names:
            pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        rows.append({"prompt": f"a red glyph {n}", "chosen": names[0], "rejected": names[1]})
    return save_rows(folder / "pairs.jsonl", rows)


def picture_settings(folder: Path) -> list[str]:
    """Settings of a run of the image demo on the pairs in `folder`."""
    held_out = "prompts.held_out=null"
    return [*GIVEN, f"prompts.train={folder / 'pairs.jsonl'}", held_out]


def picture_pairs(folder: Path, *more: str) -> RunConfig:
    if not (folder / "pairs.jsonl").exists():
        save_pictures(folder)
    return demo_config("dpo", [*picture_settings(folder), *more])
