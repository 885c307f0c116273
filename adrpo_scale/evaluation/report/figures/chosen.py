"""Which metrics are drawn against each other: what is gained, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence

from adrpo_scale.evaluation.report.cells import Column
from adrpo_scale.evaluation.report.comparison import is_ranked
from adrpo_scale.evaluation.report.evaluated import Evaluated

DIVERSITY = ("clip_diversity_l2", "pixel_diversity")  # the first that was measured
DIVERGENCE = ("w2_sum", "kl")
_SPREADS = (*DIVERSITY, "clip_diversity_cosine")
MOST = 6  # panels


def gains_against(runs: Sequence[Evaluated], costs: Sequence[str]) -> list[tuple[Column, Column]]:
    """(cost, gain) of one split each, x and y of a panel. Of the splits held-out prompts come
    first, and those trained on are left out where there are any others."""
    known = dict.fromkeys(
        (row["split"], row["metric"])
        for run in runs
        for row in run.rows
        if row["value"] is not None
    )
    found: list[tuple[Column, Column]] = []
    splits = sorted({split for split, _ in known}, key=lambda split: (split != "held_out", split))
    for split in splits:
        cost = next((name for name in costs if (split, name) in known), None)
        if cost is None or (split == "train" and found):
            continue
        gains = [c for c in known if c[0] == split and is_ranked(c) and c[1] not in _SPREADS]
        gains.sort(key=lambda column: column[1] != "reward")
        found += [((split, cost), gain) for gain in gains if not gain[1].endswith("_greedy")]
    return found[:MOST]
