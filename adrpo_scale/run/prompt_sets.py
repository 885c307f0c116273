"""The sets of prompts of a run: their hashes, and how many held-out prompts were trained on.

`train` says it at every start and writes it into `prompt_sets.json` of the run's folder; `evaluate`
says it of the questions that it asks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from adrpo_scale.core.console import say
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.run_rows import PROMPTS, prompt_rows
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of, overlap, set_hash
from adrpo_scale.data.prompts import PromptsConfig, build_prompts

log = logging.getLogger(__name__)

FILE = "prompt_sets.json"


def report_sets(train: Sequence[Prompt], held_out: Sequence[Prompt], run: Path) -> None:
    """Says how many held-out prompts are among those trained on, and writes the file. For rank 0
    only."""
    found = overlap(train, held_out)
    if found.shared:
        log.warning("held-out prompts: %s", found)
    elif held_out:
        say(f"held-out prompts: {found}")
    sets = {
        name: {"prompts": len(prompts), "hash": set_hash([key_of(prompt) for prompt in prompts])}
        for name, prompts in (("train", train), ("held_out", held_out))
    }
    try:
        replace_json(run / FILE, {**sets, "overlap": found.as_json()})
    except OSError as error:
        log.warning("%s cannot be written: %s", run / FILE, error)


def sets_text(folder: Path) -> str:
    """The evaluated prompts of a run, for the line under a table: "train: 12 prompts, set 3f0c…;
    held_out: …". "" where they were not kept."""
    last = {row["split"]: row["prompts"] for row in prompt_rows(folder / PROMPTS)}
    texts = [f"{split}: {len(keys)} prompts, set {set_hash(keys)}" for split, keys in last.items()]
    return "; ".join(texts)


def overlap_text(config: PromptsConfig, tested: Sequence[Prompt]) -> str:
    """One line about the prompts of an evaluation and those that a run trained on. Reads the run's
    prompt files; says so where that fails."""
    try:
        train, _ = build_prompts(config)
    except AdrpoError as error:
        first = str(error).partition("\n")[0]
        return f"whether they were trained on is not known: {first}"
    return str(overlap(train, tested))
