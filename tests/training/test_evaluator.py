"""What evaluation reports where rewards are several, and one of them fails."""

from __future__ import annotations

import torch

from adrpo_scale.core.types import Rewards
from adrpo_scale.training.evaluator import finite_mean, reward_planes


def scored(names: list[str], planes: list[list[float]], weights: list[float]) -> Rewards:
    """P = 1 prompt."""
    per_reward_RPG = torch.tensor(planes, dtype=torch.float64)[:, None]
    mask_PG = per_reward_RPG.isfinite().all(0)
    total_PG = torch.where(mask_PG, per_reward_RPG.sum(0), 0.0)
    weights_R = torch.tensor(weights, dtype=torch.float64)
    return Rewards(names, weights_R, per_reward_RPG, total_PG, mask_PG, torch.tensor([0]))


def test_an_evaluation_only_reward_is_reported_and_neither_added_nor_able_to_spoil() -> None:
    planes = reward_planes(
        scored(["clip", "checker"], [[30.0, 50.0], [1.0, torch.nan]], [1.0, 1.0]), {"clip"}
    )
    assert {name: finite_mean(plane) for name, plane in planes.items()} == {
        "reward": (40.0, 2),
        "checker": (1.0, 1),
    }


def test_several_trained_rewards_are_weighted_and_kept_apart() -> None:
    planes = reward_planes(scored(["a", "b"], [[1.0, 2.0], [10.0, 20.0]], [1.0, 0.5]), {"a", "b"})
    assert planes["reward"].tolist() == [[6.0, 12.0]]
    assert planes["a"].tolist() == [[1.0, 2.0]] and planes["b"].tolist() == [[10.0, 20.0]]
