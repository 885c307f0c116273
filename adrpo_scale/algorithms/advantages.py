"""Advantages and pairs from rewards, in float64 on the gathered rewards of all samples, so every
rank computes the same bits.

A masked sample does not count in its group's mean and standard deviation, and its advantage is 0.
The advantage is also 0 for every sample of a group with fewer than two unmasked samples or with
equal rewards. No result is NaN.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

from adrpo_scale.core.types import Rewards

Baseline = Literal["group", "batch"]
Scale = Literal["none", "group_std", "global_std"]
Combine = Literal["sum", "normalise_each"]

EPS = 1e-4  # added to standard deviations (GRPO)


def masked_mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Mean of the unmasked values along `dim`, kept as size 1; 0 where all are masked."""
    kept = torch.where(mask, values, 0.0)
    return kept.sum(dim, keepdim=True) / mask.sum(dim, keepdim=True).clamp(min=1)


def masked_std(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Standard deviation (ddof 1) of the unmasked values along `dim`, kept as size 1; 0 for fewer
    than two of them."""
    squares = torch.where(mask, (values - masked_mean(values, mask, dim)) ** 2, 0.0)
    return (squares.sum(dim, keepdim=True) / (mask.sum(dim, keepdim=True) - 1).clamp(min=1)).sqrt()


def is_degenerate(values: Tensor, mask: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """True where fewer than two values along `dim` are unmasked, or all of them are equal; bool,
    `dim` kept as size 1."""
    high = torch.where(mask, values, -torch.inf).amax(dim, keepdim=True)
    low = torch.where(mask, values, torch.inf).amin(dim, keepdim=True)
    return (mask.sum(dim, keepdim=True) < 2) | (high <= low)


def advantages(
    rewards_PG: Tensor,
    mask_PG: Tensor,
    *,
    baseline: Baseline = "group",
    scale: Scale = "none",
) -> Tensor:
    """A = (R - V(c)) / scale, float64 [P, G] (Algorithm 1; GRPO).

    rewards_PG: float64 [P, G]; mask_PG: bool [P, G], False for masked samples.
    baseline: V(c) is the mean of the prompt's group, or of the whole batch (the other reading of
    Algorithm 1's formula).
    scale: "none" (the paper's text for flow matching), "group_std" (GRPO's, std + 1e-4), or
    "global_std" (one std over the batch).
    """
    over: int | tuple[int, ...] = 1 if baseline == "group" else (0, 1)
    centred = rewards_PG - masked_mean(rewards_PG, mask_PG, over)
    if scale != "none":
        spread_over: int | tuple[int, ...] = 1 if scale == "group_std" else (0, 1)
        centred = centred / (masked_std(rewards_PG, mask_PG, spread_over) + EPS)
    # An exact 0 for equal rewards: a rounding error of the mean, or with baseline "batch" a real
    # distance from it, would otherwise be scaled up by 1 / EPS.
    degenerate = is_degenerate(rewards_PG, mask_PG, over)
    if scale == "group_std":
        degenerate = degenerate | is_degenerate(rewards_PG, mask_PG, 1)
    return torch.where(mask_PG & ~degenerate, centred, 0.0)


def combined(rewards: Rewards, how: Combine = "sum") -> Tensor:
    """One reward per sample from R weighted ones, float64 [P, G].

    "sum": the weighted sum. "normalise_each": each reward is first centred and scaled by the std of
    the samples of its group that it scored, so that weights compare rewards of different size.
    """
    if how == "sum":
        return rewards.total_PG
    planes = [
        advantages(plane, rewards.mask_PG & plane.isfinite(), scale="group_std")
        for plane in rewards.per_reward_RPG
    ]
    return torch.einsum("r,rpg->pg", rewards.weights_R, torch.stack(planes))


class Advantaged(Protocol):
    """The settings that advantages depend on."""

    combine: Combine
    baseline: Baseline
    scale: Scale


def scored(rewards: Rewards, config: Advantaged) -> tuple[Tensor, Tensor]:
    """(total reward, float64 [P, G]; its advantage, float64 [S]), as the config has them."""
    total_PG = combined(rewards, config.combine)
    advantage_PG = advantages(
        total_PG, rewards.mask_PG, baseline=config.baseline, scale=config.scale
    )
    return total_PG, advantage_PG.flatten()


def best_with_worst(rewards_PG: Tensor, mask_PG: Tensor, per_group: int) -> Tensor:
    """Pairs as (winner's sample id, loser's sample id), int64 [M, 2].

    A pair is the k-th best unmasked sample of a group with its k-th worst, for k up to `per_group`.
    Two equal rewards give no pair; in the ranking the first of equal ones is higher.
    """
    pairs = []
    for p, (row, mask) in enumerate(zip(rewards_PG, mask_PG, strict=True)):
        members = mask.nonzero().flatten()
        ranked = members[row[members].argsort(descending=True, stable=True)].tolist()
        for k in range(min(per_group, len(ranked) // 2)):
            winner, loser = ranked[k], ranked[-1 - k]
            if row[winner] > row[loser]:
                pairs.append((p * len(row) + winner, p * len(row) + loser))
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
