"""A pass over prompts and their completions: the inputs of a model, and where its answers lie.

Rows of `packed` are padded on the right, where a causal model needs no mask and its positions are
those of generation. Segments are the completions' tokens, packed in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adrpo_scale.core.types import Rows


@dataclass(frozen=True)
class Packed:
    """ids: int64 [G, T], the model's input; inputs: its further arguments. The K tokens of all
    completions, int64 [K] each: tokens_K; segment_K, their samples; place_K, their positions in
    their completion; row_K and before_K, the places in `ids` of the tokens before them, where they
    are predicted. spoken: of each prompt in `ids`, in order, a sample that has it."""

    ids_GT: Tensor
    tokens_K: Tensor
    segment_K: Tensor
    place_K: Tensor
    row_K: Tensor
    before_K: Tensor
    spoken: Sequence[int]
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


def packed(prompts: Sequence[Sequence[int]], rows: Rows, pad: int) -> Packed:
    """The pass over `rows`. prompts: the tokens of each row's prompt. pad: a token that no answer
    depends on."""
    lengths = rows.tensors["lengths"]
    segment_K, place_K, tokens_K = inside_of(rows)
    starts = torch.tensor([len(prompt) for prompt in prompts], device=lengths.device)
    longest = int((starts + lengths).max())
    ids = torch.tensor(
        [[*prompt, *[pad] * (longest - len(prompt))] for prompt in prompts], device=lengths.device
    )
    where_K = starts[segment_K] + place_K
    ids[segment_K, where_K] = tokens_K
    every = range(len(prompts))
    return Packed(ids, tokens_K, segment_K, place_K, segment_K, where_K - 1, every)


def inside_of(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """(segment_K, place_K, tokens_K) of `Packed`: the completions without their padding."""
    lengths = rows.tensors["lengths"]
    width = rows.tensors["completion"].shape[1]
    inside = torch.arange(width, device=lengths.device) < lengths[:, None]
    segment_K, place_K = inside.nonzero(as_tuple=True)
    return segment_K, place_K, rows.tensors["completion"][segment_K, place_K]
