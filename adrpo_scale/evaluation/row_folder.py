"""The names in the folder of an evaluation.

    TO/evaluation.json           what was asked: settings, prompt sets, rows
    TO/timing.json               when, and for how long; in no table
    TO/rows/ROW/                 a judged model; ROW: its name, or NAME,RUN[@ITERATION] of several
        evaluation.json          what the row is of
        config.json              of a run: a copy of its own
        trained.json             of a run: {"command"} of its newest start, where it is known
        manifest.jsonl           {id, set, prompt, prompt_id, category, seed, sample, file, sha256},
                                 a line a sample; text has no file
        images/000123.png        or completions.jsonl: {id, prompt, seed, sample, text}
        scores/SCORER.jsonl      {id, score}, a line a sample; null: the scorer abstained
        eval.jsonl               as a run's; split: the prompt set, metric: the scorer
        eval_prompts.jsonl       as a run's

Samples are numbered over sets, prompts, sampling seeds and samples of a prompt, in this order. The
files do not depend on the number of processes, on kills, or on the clock.
"""

from __future__ import annotations

from pathlib import Path

from adrpo_scale.core.json_files import read_object

IDENTITY, TIMING, ROWS = "evaluation.json", "timing.json", "rows"
CONFIG, MANIFEST, IMAGES, SCORES = "config.json", "manifest.jsonl", "images", "scores"
TRAINED = "trained.json"
COMPLETIONS = "completions.jsonl"
BENCHMARKS = ("images", "text")
DIVERSITY = "clip_diversity_l2"


def row_name(key: str, run: str | None = None, iteration: int | None = None) -> str:
    """The name of a row's folder. run: the folder of a run, where the model names several;
    iteration: where it names one."""
    at = "" if iteration is None else f"@{iteration}"
    return f"{key}{at}" if run is None else f"{key},{run}{at}"


def image_file(number: int) -> str:
    """The file of a picture, inside the row's folder."""
    return f"{IMAGES}/{number:06d}.png"


def scores_file(scorer: str) -> str:
    """The file of a scorer's scores, inside the row's folder."""
    return f"{SCORES}/{scorer}.jsonl"


def is_row(folder: Path) -> bool:
    """Whether a folder is a row of an evaluation of pictures or completions."""
    return (read_object(folder / IDENTITY) or {}).get("benchmark") in BENCHMARKS and not (
        folder / ROWS
    ).is_dir()


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is that of an evaluation of pictures or completions."""
    return (folder / ROWS).is_dir() and (folder / IDENTITY).is_file()


def row_folders(to: Path) -> list[Path]:
    """The rows of an evaluation, in the order of its file; rows that it no longer names follow."""
    named = (read_object(to / IDENTITY) or {}).get("rows")
    order = [str(name) for name in named] if isinstance(named, list) else []
    there = sorted(path.name for path in (to / ROWS).iterdir() if (path / IDENTITY).is_file())
    first = [name for name in order if name in there]
    return [to / ROWS / name for name in [*first, *(n for n in there if n not in first)]]
