"""Copies of samples and prompts for other people's code, which may write into what it gets."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from adrpo_scale.core.types import Completion, Prompt


def own_artifacts(artifacts: Sequence[Any]) -> list[Any]:
    """The artifacts, with arrays of their own. A picture may be normalised or drawn on in place."""
    return [_own(artifact) for artifact in artifacts]


def own_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts, with rows of their own; the same one for the samples of a group."""
    copies: dict[int, Prompt] = {}
    for prompt in prompts:
        if id(prompt) not in copies:
            rows, messages = deepcopy(dict(prompt.metadata)), deepcopy(list(prompt.messages))
            copies[id(prompt)] = replace(prompt, metadata=rows, messages=messages)
    return [copies[id(prompt)] for prompt in prompts]


def _own(artifact: Any) -> Any:
    if isinstance(artifact, np.ndarray):
        return artifact.copy()
    if isinstance(artifact, Tensor):
        return artifact.detach().clone()
    if isinstance(artifact, Completion | str):
        return artifact  # cannot be written into
    return deepcopy(artifact)
