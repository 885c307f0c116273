"""The numbers of a row: `eval.jsonl` and `eval_prompts.jsonl`, from its scores alone.

A metric's mean is over samples. Diversity has a value a sample, the mean distance to the others of
its prompt; its numbers are over prompts, as in a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import json_line, read_lines
from adrpo_scale.core.run_rows import EVALUATIONS, PROMPTS
from adrpo_scale.evaluation.row_folder import DIVERSITY, scores_file
from adrpo_scale.evaluation.samples import NamedSet, Sample
from adrpo_scale.training.evaluator import finite_mean
from adrpo_scale.training.prompt_values import prompt_row

Scores = Mapping[int, float | None]  # number of a sample → score; None: the scorer abstained


def read_scores(row: Path, scorer: str) -> dict[int, float | None]:
    """The scores of a scorer in a row's folder."""
    found: dict[int, float | None] = {}
    for line in read_lines(row / scores_file(scorer)):
        number, score = line.get("id"), line.get("score", "")
        if type(number) is int and (score is None or type(score) in (int, float)):
            found[number] = score
    return found


def write_numbers(
    row: Path,
    of: Mapping[str, Any],
    sets: Sequence[NamedSet],
    samples: Sequence[Sample],
    scores: Mapping[str, Scores],
) -> None:
    """Writes both files. of: run, algorithm, seed, iteration and weights. scores: by scorer, in the
    order of the columns; a sample without one counts as not measured."""
    numbers, by_prompt = [], []
    for one in sets:
        own = [sample.number for sample in samples if sample.set == one.name]
        values = {
            name: _values(name, [given.get(number) for number in own], len(one.prompts))
            for name, given in scores.items()
        }
        for name, tensor in values.items():
            mean, n = finite_mean(tensor)
            value = mean if math.isfinite(mean) else None
            numbers.append({**of, "split": one.name, "metric": name, "value": value, "n": n})
        at, weights = int(of["iteration"]), str(of["weights"])
        by_prompt.append(prompt_row(at, one.name, weights, one.prompts, values))
    replace_file(row / EVALUATIONS, b"".join(map(json_line, numbers)))
    replace_file(row / PROMPTS, b"".join(map(json_line, by_prompt)))


def _values(name: str, scores: Sequence[float | None], prompts: int) -> Tensor:
    """A value a sample, or of diversity one a prompt [P]; NaN where there is none."""
    values = torch.tensor(
        [math.nan if score is None else score for score in scores], dtype=torch.float64
    )
    if name == DIVERSITY:
        return torch.stack([part.nanmean() for part in values.reshape(prompts, -1)])
    return values
