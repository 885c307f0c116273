"""Passes in which completions of one prompt share its pass.

A prompt and the completions that follow it lie in one row of the model's input:

    prompt | completion 1 | completion 2 | … | another prompt | its completions | … | padding

Positions are those that a token has in a row of its own. A token sees what it sees there: its
prompt and the part of its own completion before it, by a boolean mask [G, 1, T, T] that
transformers hands to scaled-dot-product attention as it is. So every log-probability is that of
`completions.packed` but for rounding, and a prompt costs one pass in place of one a sample. The
last token of a completion predicts nothing and is left out.

How many completions share a row is a matter of cost alone: a longer row has fewer tokens in all,
and each of them meets more keys. `arranged` takes the cheapest of a few arrangements, by lengths
alone, so that a pass over the same rows is the same pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.types import Rows
from adrpo_scale.domains.completions import Packed, inside_of, packed
from adrpo_scale.domains.step_masks import takes_masks

Piece = tuple[int, ...]  # rows of one prompt
Layout = list[list[Piece]]  # by row of the model's input

_PADDING = -1  # in place of a piece's number


@dataclass(frozen=True)
class Lengths:
    """Of each row: the tokens of its prompt, and those of its completion that predict another."""

    prompts: Sequence[int]
    completions: Sequence[int]

    def of(self, piece: Piece) -> int:
        return self.prompts[piece[0]] + sum(self.completions[row] for row in piece)


def fits(attention: str, model: Any) -> bool:
    """True where a mask of one's own is exact. model: its transformers config."""
    return attention == "sdpa" and takes_masks(model)


def shared(prompts: Sequence[Sequence[int]], rows: Rows, pad: int, hidden: int) -> Packed:
    """The pass over `rows`, the cheapest of shared ones and of `packed`. prompts: the tokens of
    each row's prompt. hidden: the model's hidden size."""
    ends = [max(0, int(length) - 1) for length in rows.tensors["lengths"].tolist()]
    lengths = Lengths([len(prompt) for prompt in prompts], ends)
    layout = arranged(rows.prompt_ids_N.tolist(), lengths, hidden)
    return (
        packed(prompts, rows, pad) if layout is None else laid_out(prompts, rows, pad, layout, ends)
    )


# --- where rows lie -------------------------------------------------------------------------------


def arranged(prompt_ids: Sequence[int], lengths: Lengths, hidden: int) -> Layout | None:
    """The arrangement of least `cost`; None where each row had best have a pass of its own."""
    groups: dict[int, list[int]] = {}
    for row, prompt_id in enumerate(prompt_ids):
        groups.setdefault(prompt_id, []).append(row)
    longest = max(p + c + 1 for p, c in zip(lengths.prompts, lengths.completions, strict=True))
    best, least = None, cost(len(prompt_ids), longest, hidden, is_masked=False)
    for layout in _layouts(list(groups.values()), lengths):
        width = max(sum(map(lengths.of, pieces)) for pieces in layout)
        found = cost(len(layout), width, hidden)
        if found < least:
            best, least = layout, found
    return best


def cost(rows: int, width: int, hidden: int, *, is_masked: bool = True) -> int:
    """Of a pass over `rows` rows of `width` tokens, in units of 4 · hidden operations a layer:
    about 24 · hidden² a token in its matrices, and 4 · hidden for each key in attention, of which
    a causal pass without a mask skips half."""
    return rows * width * (6 * hidden + (width if is_masked else width // 2))


def _layouts(groups: list[list[int]], lengths: Lengths) -> Iterator[Layout]:
    """Groups whole, halved, and so on; these pieces in rows of their own, or several in a row."""
    for most in _halved(max(map(len, groups))):
        pieces = [tuple(g[k : k + most]) for g in groups for k in range(0, len(g), most)]
        for count in _halved(len(pieces)):
            yield _bins(pieces, lengths, count)


def _halved(number: int) -> Iterator[int]:
    """The number, half of it, and so on, down to 1."""
    while number > 1:
        yield number
        number = -(-number // 2)
    yield 1


def _bins(pieces: Sequence[Piece], lengths: Lengths, count: int) -> Layout:
    """The pieces in `count` rows of nearly one length: the longest first, into the shortest row."""
    bins: Layout = [[] for _ in range(count)]
    filled = [0] * count
    for piece in sorted(pieces, key=lengths.of, reverse=True):
        place = filled.index(min(filled))
        bins[place].append(piece)
        filled[place] += lengths.of(piece)
    return bins


# --- the pass -------------------------------------------------------------------------------------


def laid_out(
    prompts: Sequence[Sequence[int]], rows: Rows, pad: int, layout: Layout, ends: Sequence[int]
) -> Packed:
    """The pass over `rows` in an arrangement. ends: of `Lengths.completions`."""
    device, count = rows.tensors["lengths"].device, len(rows)
    lines: list[_Line] = []
    row, first, last = [0] * count, [0] * count, [0] * count  # by sample: where it lies
    for number, pieces in enumerate(layout):
        line = _Line([], [], [], [])
        for piece in pieces:
            prompt_end = line.begin(prompts[piece[0]])
            for sample in piece:
                row[sample], last[sample] = number, prompt_end
                first[sample] = line.follow(ends[sample], pad, prompt_end)
        lines.append(line)
    segment_K, place_K, tokens_K = inside_of(rows)

    def at(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)[segment_K]

    def filled(name: str, value: int) -> Tensor:
        width = max(len(line.tokens) for line in lines)
        lists = [getattr(line, name) for line in lines]
        return torch.tensor([[*x, *[value] * (width - len(x))] for x in lists], device=device)

    ids_GT, row_K = filled("tokens", pad), at(row)
    before_K = torch.where(place_K == 0, at(last), at(first) + place_K - 1)
    is_input_K = place_K < at(ends)
    where_K = (at(first) + place_K)[is_input_K]
    ids_GT[row_K[is_input_K], where_K] = tokens_K[is_input_K]
    mask = seen(filled("pieces", _PADDING), filled("parts", 0))
    inputs = {"attention_mask": mask, "position_ids": filled("positions", 0)}
    spoken = tuple(piece[0] for pieces in layout for piece in pieces)
    return Packed(ids_GT, tokens_K, segment_K, place_K, row_K, before_K, spoken, inputs)


@dataclass(frozen=True)
class _Line:
    """A row of the model's input, as it is filled. By token: its number, its position, its piece,
    and its part of the piece, 0 for the prompt."""

    tokens: list[int]
    positions: list[int]
    pieces: list[int]
    parts: list[int]

    def begin(self, prompt: Sequence[int]) -> int:
        """Adds a prompt; returns the place of its last token."""
        piece = self.pieces[-1] + 1 if self.pieces else 0
        self.tokens.extend(prompt)
        self.positions.extend(range(len(prompt)))
        self.pieces.extend([piece] * len(prompt))
        self.parts.extend([0] * len(prompt))
        return len(self.tokens) - 1

    def follow(self, count: int, pad: int, prompt_end: int) -> int:
        """Adds room for `count` tokens after the prompt that ends there; returns their first
        place."""
        place, start = len(self.tokens), self.positions[prompt_end] + 1
        piece, part = self.pieces[-1], self.parts[-1] + 1
        self.tokens.extend([pad] * count)
        self.positions.extend(range(start, start + count))
        self.pieces.extend([piece] * count)
        self.parts.extend([part] * count)
        return place


def seen(pieces_GT: Tensor, parts_GT: Tensor) -> Tensor:
    """bool [G, 1, T, T]: whether the token of a line (third axis) sees that of a column. Padding
    sees padding, because a softmax over nothing would be NaN."""
    width = pieces_GT.shape[1]
    place = torch.arange(width, device=pieces_GT.device)
    is_before = place[:, None] >= place
    is_same = pieces_GT[:, :, None] == pieces_GT[:, None]
    is_own = (parts_GT[:, None] == 0) | (parts_GT[:, :, None] == parts_GT[:, None])
    return (is_before & is_same & is_own)[:, None]
