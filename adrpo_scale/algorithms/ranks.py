"""Ranks of rewards, in float64, alike on every rank of a run."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(values_N: Tensor, mask_N: Tensor) -> Tensor:
    """Rank of each unmasked value among the unmasked ones, float64 [N]: +1 the largest, -1 the
    smallest, equally spaced, ties averaged. 0 for masked values, and where all are equal or fewer
    than two remain."""
    found = torch.zeros(len(values_N), dtype=torch.float64)
    kept = values_N[mask_N]
    if len(kept) > 1:
        _, place, counts = kept.unique(return_inverse=True, return_counts=True)
        smaller = counts.cumsum(0) - counts + (counts - 1) / 2
        found[mask_N] = 2 * smaller[place].double() / (len(kept) - 1) - 1
    return found


def group_ranks(values_PG: Tensor, mask_PG: Tensor) -> Tensor:
    """`ranks` within each group, float64 [P, G]."""
    return torch.stack([ranks(*group) for group in zip(values_PG, mask_PG, strict=True)])
