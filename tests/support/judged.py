"""The folder of an evaluation of pictures, written without any model."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of, set_hash
from adrpo_scale.evaluation.asked import SamplingConfig
from adrpo_scale.evaluation.row_folder import image_file, row_name, scores_file
from adrpo_scale.evaluation.row_numbers import write_numbers
from adrpo_scale.evaluation.samples import NamedSet, planned
from adrpo_scale.training.prompt_values import category_of

SCORERS = ("clip", "checker")


def named_set(name="demo", count=3):
    """A set of prompts with two categories."""
    rows = [(n, f"{name} prompt {n}", {"category": "ab"[n % 2]}) for n in range(count)]
    return NamedSet(name, tuple(Prompt(*row) for row in rows))


def lines(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_row(to: Path, key, sets, sampling, *, config=None, iteration=None, level=0.0, several=0):
    """TO/rows/ROW of a model. config: of a run (plain data), None for a published model. several:
    whether the model names several runs. level: added to each score, and a picture's grey."""
    run = None if config is None else f"{key}-run-{config['seed']}"
    name = row_name(key, run if several else None, iteration)
    row = to / "rows" / name
    (row / "images").mkdir(parents=True)
    draw, made = random.Random(name), []
    for sample in planned(sets, sampling):
        picture = np.full((8, 8, 3), min(255, int(40 * level) + sample.number), np.uint8)
        path = row / image_file(sample.number)
        Image.fromarray(picture).save(path)
        place = {"set": sample.set, "prompt": sample.prompt.text, "prompt_id": sample.prompt.id}
        drawn = {"category": category_of(sample.prompt), "seed": sample.seed}
        file = {"file": image_file(sample.number)}
        file |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        made.append({"id": sample.number, **place, **drawn, "sample": sample.member, **file})
    lines(row / "manifest.jsonl", made)
    scores = {s: {m["id"]: round(level + draw.random(), 3) for m in made} for s in SCORERS}
    scores["clip_diversity_l2"] = {m["id"]: round(draw.random(), 3) for m in made}
    for scorer, given in scores.items():
        lines(row / scores_file(scorer), [{"id": id, "score": s} for id, s in given.items()])
    of = {"run": run or name, "algorithm": config["algorithm"]["name"] if config else "none"}
    of |= {"seed": config["seed"] if config else None, "iteration": iteration or 0}
    model = {"pipeline": f"hub/{key}", "class": "StableDiffusion3Pipeline", "steps": 28}
    if config is not None:
        (row / "config.json").write_text(json.dumps(config))
        model = {"run": run, "iteration": of["iteration"], "weights": "raw"}
    said = {"benchmark": "images", "row": name, "model": model, "published": config is None}
    (row / "evaluation.json").write_text(
        json.dumps(said | {k: of[k] for k in ("algorithm", "seed")})
    )
    write_numbers(row, {**of, "weights": "raw"}, sets, planned(sets, sampling), scores)
    return row


def write_evaluation(to: Path, config, *, seeds=(0, 1), sets=(), per_prompt=2):
    """A folder with a model of several runs, `ours`, and a published one, `flux`. config: of a run,
    as plain data. Returns the rows' folders."""
    sets = sets or (named_set(),)
    sampling = SamplingConfig(per_prompt=per_prompt, seeds=[0, 7])
    rows = [
        write_row(to, "ours", sets, sampling, config=config | {"seed": s}, several=1, level=1 + s)
        for s in seeds
    ]
    rows.append(write_row(to, "flux", sets, sampling, level=0.5))
    hashes = {
        s.name: {"prompts": len(s.prompts), "hash": set_hash([*map(key_of, s.prompts)])}
        for s in sets
    }
    said = {"benchmark": "images", "prompt_sets": hashes, "rows": [row.name for row in rows]}
    (to / "evaluation.json").write_text(json.dumps(said))
    return rows
