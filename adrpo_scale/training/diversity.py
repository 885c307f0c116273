"""Diversity of the samples of one prompt, as the mean distance over all pairs. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def mean_pairwise_l2(features_PGD: Tensor) -> Tensor:
    """[P]: mean Euclidean distance over the G·(G - 1)/2 pairs of each group; G ≥ 2."""
    return torch.stack([torch.pdist(group).mean() for group in features_PGD.float()])


def mean_pairwise_cosine(features_PGD: Tensor) -> Tensor:
    """[P]: mean of 1 - cosine over the pairs of each group; G ≥ 2."""
    unit = normalize(features_PGD.double(), dim=2)
    size = unit.shape[1]
    # Σ over ordered pairs of a·b = |Σ a|² - Σ |a|²
    pair_sum = unit.sum(1).square().sum(1) - unit.square().sum((1, 2))
    return 1 - pair_sum / (size * (size - 1))
