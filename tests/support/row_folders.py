"""Folders of rows that an evaluation wrote, synthetic: pictures or completions with scores."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adrpo_scale.core.json_files import json_line
from adrpo_scale.run.load import load_config
from tests.support.tiny import CONFIGS

PROMPTS = (
    ("a red circle above a blue square", "colours"),
    ("two green triangles", "counting"),
    ("the letter k, very small", "text"),
    ("a white fox asleep in the snow", "animals"),
    ("seven yellow dots in a row", "counting"),
)
EVALUATE = "adrpo-scale evaluate configs/mine.toml"
SEEDS, EACH = (0, 1), 2


def row_folder(
    to: Path,
    algorithm: str,
    *,
    seed: int | None = 0,
    gain: float = 0.0,
    benchmark: str = "images",
    side: int = 64,
    prompts: Sequence[tuple[str, str]] = PROMPTS,
    overrides: Sequence[str] = (),
    published: bool = False,
) -> Path:
    """A row as `evaluate` leaves it, under `to/rows`. gain: what its samples have more of."""
    name = algorithm if published else f"{algorithm},run-{seed}"
    folder = to / "rows" / name
    folder.mkdir(parents=True)
    (to / "evaluation.json").write_text(json.dumps({"benchmark": benchmark}))
    (to / "timing.json").write_text(json.dumps({"starts": [{}, {"command": EVALUATE}]}))
    trained: dict[str, Any] = {} if published else {"algorithm": algorithm, "seed": seed}
    document = {"benchmark": benchmark, "row": algorithm, "published": published, **trained}
    document["model"] = {"iteration": 0 if published else 60, "weights": "raw"}
    (folder / "evaluation.json").write_text(json.dumps(document))
    if not published:
        config = CONFIGS / "demo" / "image_grpo.toml"
        settings = load_config(config, [f"seed={seed}", *overrides]).config.resolved()
        settings["algorithm"]["name"] = algorithm
        (folder / "config.json").write_text(json.dumps(settings))
    samples = [
        {
            "id": number,
            "set": "drawn",
            "prompt": prompt,
            "category": category,
            "seed": noise,
            "sample": sample,
        }
        for number, (prompt, category, noise, sample) in enumerate(
            (*asked, noise, sample)
            for asked in prompts
            for noise in SEEDS
            for sample in range(EACH)
        )
    ]
    scores = [_score(sample, gain) for sample in samples]
    if benchmark == "images":
        _draw(folder, samples, gain, side)
    else:
        _write_texts(folder, samples, algorithm)
    _lines(
        folder / "scores" / "checker.jsonl",
        [
            {"id": sample["id"], "score": score}
            for sample, score in zip(samples, scores, strict=True)
        ],
    )
    _numbers(folder, samples, scores, document, prompts)
    return folder


def _samples(prompts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    names = ("id", "set", "prompt", "category", "seed", "sample")
    places = [
        ("drawn", *asked, seed, sample)
        for asked in prompts
        for seed in SEEDS
        for sample in range(EACH)
    ]
    return [dict(zip(names, (n, *place), strict=True)) for n, place in enumerate(places)]


def _score(sample: dict[str, Any], gain: float) -> float:
    key = f"{sample['prompt']}{sample['seed']}{sample['sample']}".encode()
    return 20 + hashlib.sha256(key).digest()[0] / 64 + gain * (1 + sample["sample"] / 10)


def _draw(folder: Path, samples: list[dict[str, Any]], gain: float, side: int) -> None:
    (folder / "images").mkdir()
    y, x = np.mgrid[0:side, 0:side] / side
    for sample in samples:
        draws = np.random.default_rng([sample["id"], 7])
        a, b, c = draws.uniform(0, 6, 3)
        waves = [np.sin(a * x + k + gain * y) * np.cos(b * y + c * k) for k in range(3)]
        pixels = np.uint8(127.5 * (1 + np.stack(waves, axis=-1)))
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        sample["file"] = f"images/{sample['id']:06d}.png"
        (folder / sample["file"]).write_bytes(content.getvalue())
        sample["sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
    _lines(folder / "manifest.jsonl", samples)


def _write_texts(folder: Path, samples: list[dict[str, Any]], who: str) -> None:
    answers = (
        f"First I look at what is asked. Then {who} says so, plainly, and stops.",
        f"{who}: there is nothing to count here.\n\nTherefore the answer is 0.",
    )
    texts = [{**sample, "text": answers[sample["id"] % 2]} for sample in samples]
    _lines(folder / "completions.jsonl", texts)


def _numbers(
    folder: Path,
    samples: list[dict[str, Any]],
    scores: list[float],
    document: dict[str, Any],
    prompts: Sequence[tuple[str, str]],
) -> None:
    iteration = document["model"]["iteration"]
    of = {"iteration": iteration, "split": "drawn", "weights": "raw"}
    who = {"run": folder.name, "algorithm": document["row"], "seed": document.get("seed")}
    table = np.array(scores).reshape(len(prompts), -1)
    row = {**who, **of, "metric": "checker", "value": float(table.mean()), "n": table.size}
    _lines(folder / "eval.jsonl", [row])
    columns = {
        "mean": table.mean(axis=1).tolist(),
        "std": table.std(axis=1, ddof=1).tolist(),
        "n": [table.shape[1]] * len(table),
    }
    keys = [prompt for prompt, _ in prompts]
    _lines(
        folder / "eval_prompts.jsonl", [{**of, "prompts": keys, "metrics": {"checker": columns}}]
    )


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(json_line(row) for row in rows))
