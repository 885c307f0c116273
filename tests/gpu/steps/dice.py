"""The dice demo by its command: a whole training run, whose exact checker rises."""

from __future__ import annotations

from adrpo_scale.run.tables import after, before, read_rows
from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import CONFIGS, command, start, train_words
from tests.support.tiny import records

DRY = (
    *("iterations=2", "prompts.per_iteration=2", "prompts.group_size=2", "evaluation.every=1"),
    *("evaluation.prompts=2", "evaluation.samples_per_prompt=2", "logging.pictures_every=0"),
)


def run(case: Case) -> None:
    folder = case.folder / "whole" / "run"
    settings = [*case.size((), DRY), f"engine.device={case.device}"]
    words = train_words(CONFIGS / "dice_adrpo.toml", folder, settings)
    training = start(command(words), case.folder / "train.txt")
    code = training.wait(case.seconds * 0.9)
    case.note(seconds=training.seconds, exit_code=code)
    if code != 0:
        case.note(output=training.tail)
        case.check("the exit code is 0", False, code)
        return
    rows = read_rows(folder)
    for split in ("train", "held_out"):
        for metric in ("checker", "reward", "w2_sum"):
            found = [float(f(rows, split, metric)) for f in (before, after)]
            case.note(**{f"{split}_{metric}": found})
    phases = [k for k in records(folder)[-1] if k.startswith("seconds_")]
    case.note(**{k: sum(line[k] for line in records(folder)) for k in phases})
    last = case.findings.figures["held_out_checker"][1]
    case.check("the checker passes .6 on held-out prompts", last > 0.6 or case.is_dry, last)
