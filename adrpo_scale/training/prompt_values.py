"""The numbers of an evaluation prompt by prompt: rows of `eval_prompts.jsonl`.

Intervals over prompts and paired comparisons of runs need them; `eval.jsonl` has the means alone.
A row is an evaluation of one split:

    iteration, split, weights   of the evaluation; weights: raw or ema
    prompts                     a hash a prompt (`data.prompt_sets.key_of`)
    categories                  the category of each prompt's row (GenEval's tag), or null; absent
                                where no prompt has one
    metrics                     name → mean [P], n [P] (finite values), and std [P] where a prompt
                                has several samples (sample standard deviation)

Values have seven digits, as many as float32. A number that is not finite is null.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of


def prompt_row(
    iteration: int,
    split: str,
    weights: str,
    prompts: Sequence[Prompt],
    values: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The row of a split. values: by metric, a value a sample [P·G] or [P, G], or one a prompt [P];
    others, which not every prompt has, are left out."""
    found = {name: _by_prompt(tensor, len(prompts)) for name, tensor in values.items()}
    categories = [category_of(prompt) for prompt in prompts]
    return {
        "iteration": iteration,
        "split": split,
        "weights": weights,
        "prompts": [key_of(prompt) for prompt in prompts],
        **({"categories": categories} if any(categories) else {}),
        "metrics": {name: columns for name, columns in found.items() if columns is not None},
    }


def category_of(prompt: Prompt) -> str | None:
    """The category of a prompt's row, as published sets have it; None where it has none."""
    found = (prompt.metadata.get(key) for key in ("category", "tag"))
    return next((value for value in found if isinstance(value, str) and value), None)


def _by_prompt(values: Tensor, prompts: int) -> dict[str, list[Any]] | None:
    if not values.numel() or values.numel() % prompts:
        return None
    plane_PG = values.double().cpu().reshape(prompts, -1)
    kept_PG = plane_PG.isfinite()
    n_P = kept_PG.sum(1)
    mean_P = torch.where(kept_PG, plane_PG, 0.0).sum(1) / n_P
    found: dict[str, list[Any]] = {"mean": _numbers(mean_P), "n": n_P.tolist()}
    if plane_PG.shape[1] > 1:
        squares_PG = torch.where(kept_PG, (plane_PG - mean_P[:, None]).square(), 0.0)
        std_P = (squares_PG.sum(1) / (n_P - 1)).sqrt()
        found["std"] = _numbers(torch.where(n_P > 1, std_P, torch.nan))
    return found


def _numbers(values: Tensor) -> list[float | None]:
    return [float(f"{v:.7g}") if math.isfinite(v) else None for v in values.tolist()]
