"""Two iterations of every algorithm on the demo against numbers kept in the tree.

A change of the maths shows here even where every property still holds. The tolerance leaves room
for another machine's rounding, not for another formula. With UPDATE_GOLDEN=1 in the environment
the numbers are written again: say in the commit why they moved.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.ranks import run_ranks
from tests.support.tiny import demo_config, demo_trainer, records

GOLDEN = Path(__file__).parents[1] / "golden" / "image_demo.json"
KEYS = ("reward", "advantage_abs_mean", "beta_min", "beta_max", "loss", "divergence", "grad_norm")
ALGORITHMS = ("adrpo", "grpo", "orw_cfm_w2", "raft", "dpo")


def two_iterations(rank: int, world: int, algorithm: str, folder: Path) -> list[dict[str, float]]:
    trainer = demo_trainer(folder, demo_config(algorithm, ["iterations=2"]))
    trainer.train()
    return [{key: record[key] for key in KEYS} for record in records(folder)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_numbers_are_those_of_the_tree(algorithm: str, tmp_path: Path) -> None:
    (found,) = run_ranks(two_iterations, 1, algorithm, tmp_path / "run")
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {algorithm: found}, indent=2, sort_keys=True) + "\n")
        return
    for expected, record in zip(golden[algorithm], found, strict=True):
        assert {k for k in record if record[k] is None} == {k for k in KEYS if expected[k] is None}
        measured = {key: value for key, value in record.items() if value is not None}
        assert measured == pytest.approx({k: expected[k] for k in measured}, rel=2e-3, abs=1e-6)
