"""A run that a signal stopped and the same command resumed equals an undisturbed one to the bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS, command, start, train_words
from tests.support.starts import differences, timeless
from tests.support.tiny import records

STOPPED = 85
SETTINGS = (
    *("iterations=3", "engine.dtype=bfloat16", "engine.deterministic=true", "evaluation.every=2"),
    *("prompts.per_iteration=4", "prompts.group_size=8", "evaluation.prompts=4"),
    *("logging.pictures_every=0",),
)
DRY = ("prompts.per_iteration=2", "prompts.group_size=2", "evaluation.prompts=2")
DRY_IMAGE = (*DRY, "domain.rollout.steps=2", "domain.evaluation.steps=2")
DRY_TOKENS = (*DRY, "domain.rollout.max_new_tokens=8", "domain.evaluation.max_new_tokens=8")


def unlike_values(one: Path, other: Path) -> dict[str, list[Any]]:
    """[line, value, other value] of each key of metrics.jsonl, where its values first differ."""
    found: dict[str, list[Any]] = {}
    for number, (mine, theirs) in enumerate(zip(records(one), records(other), strict=False), 1):
        for key in sorted({*mine, *theirs}):
            if mine.get(key) != theirs.get(key):
                found.setdefault(key, [number, mine.get(key), theirs.get(key)])
    return found


def run(case: Case, task: str, *more: str) -> None:
    """more: settings beside those of every resume."""
    small = DRY_IMAGE if task == "image" else DRY_TOKENS
    settings = [*SETTINGS, *case.size((), small), *more, f"engine.device={case.device}"]
    if task != "image":
        settings.append("logging.completions_every=0")
    whole, other = case.folder / "whole" / "run", case.folder / "stopped" / "run"

    def words(folder: object) -> list[str]:
        return train_words(TASKS[task], folder, settings)  # type: ignore[arg-type]

    straight = start(command(words(whole)), case.folder / "whole.txt")
    first = start(command(words(other), "stop=2"), case.folder / "stopped.txt")
    codes = [first.wait(case.seconds * 0.5)]
    again = start(command(words(other)), case.folder / "resumed.txt")
    codes += [again.wait(case.seconds * 0.4), straight.wait(case.seconds * 0.1)]
    case.note(
        exit_codes={"stopped": codes[0], "resumed": codes[1], "whole": codes[2]},
        seconds={"stopped": first.seconds, "resumed": again.seconds},
    )
    if codes != [STOPPED, 0, 0]:
        texts = [part.tail for part in (first, again, straight)]
        case.note(output=texts)
        case.check("exit codes are 85, 0 and 0", False, codes)
        return
    unlike = unlike_values(whole, other)
    case.note(unlike_in_metrics={k: v for k, v in unlike.items() if timeless({k: 0})})
    case.note(unlike_in_memory={k: v for k, v in unlike.items() if k.startswith("peak_gb_")})
    found = differences(whole, other)
    case.check("the two runs are equal to the bit", not found, found[:5])
    text = straight.text + first.text + again.text
    quiet = "does not have a deterministic implementation" not in text
    case.check("no kernel lacks a deterministic form", quiet, quiet)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    finite = all(math.isfinite(line[k]) for line in lines for k in ("loss", "grad_norm"))
    case.check("loss and gradients are finite", finite and len(lines) == 3, len(lines))
