"""What the paper's sweeps cost by `plan`, for the page that lists its numbers.

    python -m benchmarks.paper_plans [table1 texts ...]

Each run on its recipe's nodes of eight A6000s with 100 Gb/s, as `adrpo-scale sweep FILE --dry-run`
prints it. Nothing is measured. A sweep's figures are kept with a hash of the settings that its
files state, and are stale where that differs: the page then says so, and `tests/docs/test_paper.py`
fails.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from transformers.utils import logging

from adrpo_scale.cluster.plan.base import Hardware, Plan
from adrpo_scale.cluster.plan.hardware import build_hardware
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.sweep.size import size_of
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of
from docs.paper_recipes import PLANS, RECIPES, Recipe, inputs_of, plans

GPU, GPUS_PER_NODE, NETWORK_GBIT = "a6000", 8, 100.0


class Planner:
    """Plans of runs; those that differ in nothing that a plan counts have one: in their seed, their
    prompts' files, and the range of their advantage."""

    def __init__(self) -> None:
        self._known: dict[str, Plan] = {}

    def __call__(self, config: RunConfig, hardware: Hardware) -> Plan:
        settings = config.resolved() | {"seed": None}
        settings["prompts"] = settings["prompts"] | {"train": "", "held_out": ""}
        ranges = ("advantage_min", "advantage_max", "advantage_clip")
        settings["algorithm"] = {k: v for k, v in settings["algorithm"].items() if k not in ranges}
        key = json.dumps(settings, sort_keys=True)
        if key not in self._known:
            self._known[key] = plan_of(config, hardware)
        return self._known[key]


def planned(recipe: Recipe, planner: Planner) -> dict[str, Any]:
    """The figures of a sweep, and what they follow from."""
    hardware = build_hardware(GPU, recipe.nodes, GPUS_PER_NODE, NETWORK_GBIT)
    size = size_of(runs_of(read_sweep(Path(recipe.sweep))), hardware, 1, 1, planner)
    return {
        "inputs": inputs_of(recipe.sweep),
        "machine": f"{recipe.nodes} nodes of {GPUS_PER_NODE} A6000s, {NETWORK_GBIT:g} Gb/s",
        "runs": size.runs,
        "gpu_hours": round(size.gpu_hours, 1),
        "hours": round(size.hours, 1),
        "bytes": size.bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="sweeps of configs/paper; default: all")
    given = parser.parse_args()
    logging.set_verbosity_error()
    planner, kept = Planner(), plans()
    for recipe in {one.sweep: one for one in RECIPES if one.nodes}.values():
        if not given.names or Path(recipe.sweep).stem in given.names:
            kept[recipe.sweep] = planned(recipe, planner)
            PLANS.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
            print(f"{recipe.sweep}: {kept[recipe.sweep]['gpu_hours']} GPU-hours", flush=True)


if __name__ == "__main__":
    main()
