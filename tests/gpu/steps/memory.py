"""Memory that runs out: what the command says, its exit code, and how soon."""

from __future__ import annotations

import json
import re

from tests.gpu.steps.base import Case
from tests.gpu.steps.processes import TASKS, command, start, train_words

# Rows enough that an update takes hundreds of MB, and loading next to nothing.
LARGE = ("prompts.per_iteration=32", "prompts.group_size=16", "optimizer.micro_batch=512")
SMALL = ("prompts.per_iteration=2", "prompts.group_size=4")


def run(case: Case) -> None:
    settings = [*case.size(LARGE, SMALL), "iterations=3", f"engine.device={case.device}"]
    whole = start(
        command(train_words(TASKS["text"], case.folder / "whole", settings, "--trial")),
        case.folder / "whole.txt",
    )
    code = whole.wait(case.seconds * 0.4)
    case.check("a trial with all of the memory ends with 0", code == 0, code)
    if code != 0:
        case.note(output=whole.tail)
        return
    peaks = json.loads((case.folder / "whole" / "trial.json").read_text())["peak_bytes"]
    limit = (peaks["load"] + max(peaks.values())) // 2
    case.note(peak_bytes=peaks, limit_bytes=limit)
    preparation = case.size(f"cap={limit}", "lack=2")
    for name, flags, expected in (("trial", ["--trial"], {2}), ("train", [], None)):
        words = train_words(TASKS["text"], case.folder / name, settings, *flags)
        tried = start(command(words, preparation), case.folder / f"{name}.txt")
        code = tried.wait(case.seconds * 0.25)
        said = re.findall(r"(?m)^.*(?:memory ran out|out of memory|OutOfMemory).*$", tried.text)
        seconds = tried.seconds
        case.note(**{name: {"exit_code": code, "seconds": seconds, "said": said[:3]}})
        if expected is not None:
            case.check(f"{name}: its exit code is 2", code in expected, code)
            named = any("memory ran out in the" in line for line in said)
            case.check(f"{name}: the phase is named, and what to try", named, said[:1])
        case.check(f"{name}: it ended by itself", code is not None, code)
