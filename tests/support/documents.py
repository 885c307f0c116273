"""The document of a checkpoint's manifest, as training writes it, for checkpoints made by hand."""

from __future__ import annotations

from typing import Any


def document(iteration: int, **more: Any) -> dict[str, Any]:
    """A document of iteration `iteration`, without rewards and optimizer steps."""
    counters = {"iteration": iteration, "cursor": 0, "step": 0, "nonfinite_in_a_row": 0}
    return {
        "run": "made-by-hand",
        "identity": "0" * 8,
        "package": "0.1.0",
        "world_size": 1,
        "config": {
            "seed": 0,
            "rebase_reference": False,
            "algorithm": {"name": "adrpo"},
            "domain": {"name": "flow"},
        },
        "base": {"model": "demo:image", "revision": None, "sha256": "0" * 64, "frozen": "0" * 64},
        "rules": {},
        "lora": {"rank": 2, "alpha": 2.0},
        "prompts": "0" * 64,
        "origin": None,
        "left_out": [],
        "counters": {**counters, "evaluated": -1, "learned": 0},
        "rewards": {},
        "optimizer_steps": {},
        **more,
    }
