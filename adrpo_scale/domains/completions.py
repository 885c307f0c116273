"""A pass over prompts and their completions: the inputs of a model, and where its answers lie.

Rows are padded on the right, where a causal model needs no mask and its positions are those of
generation. Segments are the completions' tokens, packed in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adrpo_scale.core.types import Rows


@dataclass(frozen=True)
class Packed:
    """ids: int64 [N, T], the model's input. The K tokens of all completions, int64 [K] each:
    tokens_K; segment_K, their rows; place_K, their positions in their completion; before_K, the
    positions in `ids` of the tokens before them, where they are predicted."""

    ids_NT: Tensor
    tokens_K: Tensor
    segment_K: Tensor
    place_K: Tensor
    before_K: Tensor


def packed(prompts: Sequence[Sequence[int]], rows: Rows, pad: int) -> Packed:
    """The pass over `rows`. prompts: the tokens of each row's prompt. pad: a token that no answer
    depends on."""
    lengths = rows.tensors["lengths"]
    width = rows.tensors["completion"].shape[1]
    inside = torch.arange(width, device=lengths.device) < lengths[:, None]
    segment_K, place_K = inside.nonzero(as_tuple=True)
    tokens_K = rows.tensors["completion"][segment_K, place_K]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=lengths.device)
    longest = int((starts + lengths).max())
    ids = torch.tensor(
        [[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts], device=lengths.device
    )
    where_K = starts[segment_K] + place_K
    ids[segment_K, where_K] = tokens_K
    return Packed(ids, tokens_K, segment_K, place_K, where_K - 1)
