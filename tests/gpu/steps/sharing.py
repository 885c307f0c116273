"""Two processes share one GPU, their collectives carried by gloo: FSDP2 over two real ranks."""

from __future__ import annotations

from pathlib import Path

import torch

from adrpo_scale.checkpoint.reader import Reader
from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS, command, start, start_ranks, train_words, wait_all
from tests.support.starts import newest

SETTINGS = (
    *("iterations=2", "evaluation.every=0", "prompts.per_iteration=3", "prompts.group_size=6"),
    *("domain.rollout.max_new_tokens=12", "logging.completions_every=0"),
)


def run(case: Case) -> None:
    settings = [*SETTINGS, f"engine.device={case.device}"]
    alone, two = case.folder / "alone", case.folder / "two"
    one = start(command(train_words(TASKS["text"], alone, settings)), case.folder / "alone.txt")
    words = train_words(TASKS["text"], two, [*settings, "engine.shard=all"])
    ranks = start_ranks(command(words, "share"), 2, case.folder, same_device=True)
    codes = [*wait_all(ranks, case.seconds - 20), one.wait(15)]
    case.note(exit_codes=codes, seconds=[part.seconds for part in (*ranks, one)])
    if codes != [0, 0, 0]:
        case.note(output=[part.tail for part in (*ranks, one)])
    case.check("all three processes end with 0", codes == [0, 0, 0], codes)
    if codes == [0, 0, 0]:
        off = largest_difference(alone, two)
        case.check("trained weights equal one process's to 1e-3", off < 1e-3, off)


def largest_difference(run: Path, other: Path) -> float:
    """Of any trained weight in the newest checkpoints of two runs."""
    one, two = newest(run), newest(other)
    return max(_difference(one, two, name) for name in one.names())


def _difference(one: Reader, two: Reader, name: str) -> float:
    return float(torch.sub(one.whole(name), two.whole(name)).abs().max())
