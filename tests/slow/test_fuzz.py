"""Configs and command lines that nobody would write on purpose: no traceback, and what `config`
takes trains, or is refused in one message.

`python -m tests.slow.test_fuzz SEED CONFIGS COMMANDS` runs as many as are asked for, and prints how
they ended.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import fuzzing
from tests.support.ranks import RankError, run_ranks
from tests.support.tiny_text import save_prompts, save_tiny

SEED, CONFIGS, COMMANDS = 14, 600, 250

FLOW: dict[str, Any] = {
    "iterations": 1,
    "domain": {
        "name": "flow",
        "model": "demo:image",
        "t5": False,
        "max_sequence_length": 12,
        "height": 20,
        "width": 20,
        "lora": {"rank": 2},
        "rollout": {"steps": 2, "guidance": 1.0},
        "evaluation": {"steps": 2, "guidance": 1.0},
    },
    "algorithm": {"name": "adrpo"},
    "rewards": [{"kind": "glyph_checker"}],
    "prompts": {
        "train": "demo:image/prompts/held_out.jsonl",
        "per_iteration": 2,
        "group_size": 2,
    },
    "optimizer": {"micro_batch": 4},
    "evaluation": {"every": 0, "prompts": 2, "samples_per_prompt": 2},
    "logging": {"pictures_every": 0},
}


def text(model: Path) -> dict[str, Any]:
    save_tiny(model, num_hidden_layers=1)
    prompts = save_prompts(model / "prompts.jsonl")
    tokens = {"max_new_tokens": 4}
    return {
        "iterations": 1,
        "domain": {
            "name": "text",
            "model": str(model),
            "rollout_chunk": 8,
            "chat": {"max_prompt_tokens": 16},
            "rollout": tokens,
            "evaluation": tokens,
        },
        "algorithm": {
            "name": "adrpo",
            "scale": "group_std",
            "beta0": 0.04,
            "advantage_min": -0.04,
            "advantage_max": 0.04,
        },
        "rewards": [{"kind": "function", "path": "tests.support.tiny_text:many_kinds"}],
        "prompts": {"train": str(prompts), "per_iteration": 2, "group_size": 2},
        "optimizer": {"micro_batch": 4},
        "evaluation": {"every": 0, "prompts": 2, "samples_per_prompt": 2},
    }


def fuzz(rank: int, world: int, place: str, seed: int, configs: int, commands: int) -> Any:
    """(counts, faults) of all cases, in a process of their own."""
    folder = Path(place)
    fuzzing.prepare(folder)
    base = text(folder / "model")
    found = fuzzing.fuzz_configs([base, FLOW], seed, configs, folder)
    config, run = folder / "real.toml", folder / "real"
    fuzzing.train_once(base, config, run)
    more = fuzzing.fuzz_commands(config, run, seed, commands, folder)
    return found.counts + more.counts, [*found.faults, *more.faults]


@pytest.mark.slow
def test_no_config_and_no_command_line_ends_with_a_traceback(tmp_path):
    try:
        ((counts, faults),) = run_ranks(
            fuzz, 1, str(tmp_path), SEED, CONFIGS, COMMANDS, timeout=3000
        )
    except RankError as error:
        raise AssertionError(f"at {(tmp_path / 'last').read_text()}: {error}") from error
    assert faults == [], "\n".join(faults)
    assert counts["passed config"] > CONFIGS / 4 and counts["trained, code 0"] > CONFIGS / 5


def main() -> None:
    seed, configs, commands = map(int, sys.argv[1:])
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = fuzz(0, 1, folder, seed, configs, commands)
    for name, count in sorted(counts.items()):
        print(f"{count:6} {name}")
    print(f"{len(faults):6} faults", *faults, sep="\n")


if __name__ == "__main__":
    main()
