"""One rank of a run fails, in every phase and in every way, over a teardown that blocks as NCCL's.

`python -m tests.slow.test_one_rank_fails` prints exit codes, and seconds until all ranks are gone.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import pytest

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from tests.support import starts
from tests.support.faults import HangAt
from tests.support.promptness import NO_TIMEOUTS, NotedRaise, NotedVanish, check_prompt
from tests.support.ranks import LONGEST

# Where the phase's second iteration is, as a call on one rank.
PLACES = {
    "load": ("adrpo_scale.domains.flow:FlowDomain.prepare", 1),
    "rollout": ("adrpo_scale.training.rollout:sample_block", 2),
    "reward": ("adrpo_scale.training.rollout:reward_block", 2),
    "update": ("adrpo_scale.engines.fsdp2:Fsdp2Engine.backward", 2),
    "evaluation": ("adrpo_scale.training.evaluator:Evaluator.evaluate", 5),
    "save": ("adrpo_scale.checkpoint.store:Store.save", 2),
}
SETTINGS = ["iterations=3", "checkpoint.every_iterations=1", "evaluation.every=1"]
SETTINGS += [
    "evaluation.prompts=2",
    "evaluation.samples_per_prompt=2",
    "logging.pictures_every=0",
    "checkpoint.background=false",
]
KINDS = {
    "memory": ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 0"),
    "GPU": ("AcceleratorError", "CUDA error: an illegal memory access was encountered"),
    "exception": ("KeyError", "to_q"),
    "killed": None,
}
CODES = {"memory": 85, "GPU": 86, "exception": 1, "killed": -9}


def failed(folder, phase, kind, world=2, **options):
    """(exit codes, what the ranks have written, seconds from the fault to the last exit)."""
    place, call = PLACES[phase]
    what = KINDS[kind]
    fault = NotedVanish(place, call, folder)
    if what is not None:
        fault = NotedRaise(place, call, *what, folder)
    start = starts.train(folder, world, [*SETTINGS, *NO_TIMEOUTS], prepare=fault, **options)
    while start.processes[1].is_alive():
        start.processes[1].join(0.02)
    since = time.monotonic()
    return start.wait(others=LONGEST), start.text(), time.monotonic() - since


def check(folder, phase, kind, codes, text):
    world = len(codes)
    assert codes[1] == CODES[kind], text
    assert {*codes[:1], *codes[2:]} <= {86}, text  # the others have lost one
    if kind != "killed":
        assert "[rank 1 on " in text
        named = re.search(r"\[rank 1 on [^\]]+\] .*", text)[0]
        assert phase in named or (phase == "load" and "loaded" in named), named
    assert text.count("Traceback") == (kind == "exception"), text
    assert len(re.findall(r"\[rank [02-9] on [^\]]+\] lost another process", text)) == world - 1
    for rank in range(world):
        if rank != 1 or kind != "killed":
            check_prompt(folder, rank, is_at_fault=rank == 1)
    there = committed(folder / "run" / CHECKPOINTS)
    assert set(there) <= {0, 1, 2} and (phase in ("load", "rollout", "reward") or there)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", PLACES)
def test_the_fault_is_named_all_ranks_end_and_the_last_commit_stands(tmp_path, phase, kind):
    codes, text, _ = failed(tmp_path, phase, kind)
    check(tmp_path, phase, kind, codes, text)
    again = starts.train(tmp_path, 2, SETTINGS)
    assert again.wait() == [0, 0], again.text()


@pytest.mark.slow
@pytest.mark.parametrize(("phase", "kind"), [("update", "memory"), ("rollout", "killed")])
def test_the_same_on_four_ranks(tmp_path, phase, kind):
    codes, text, _ = failed(tmp_path, phase, kind, world=4)
    check(tmp_path, phase, kind, codes, text)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_collective_that_never_returns_ends_every_rank(tmp_path, world):
    """Whoever notices first asks for a requeue; the others notice it too, or lose that one."""
    settings = [*SETTINGS, "limits.hang_seconds=20"]
    start = starts.train(tmp_path, world, settings, prepare=HangAt(*PLACES["update"]))
    codes, text = start.wait(), start.text()
    assert codes[1] == 85 and {*codes} <= {85, 86}, text
    assert re.search(
        r"rank 1 on \S+ no progress for \d+ s in update \(limits.hang_seconds = 20\)", text
    )
    stacks = (tmp_path / "run" / "stacks" / "rank-0001.txt").read_text()
    assert "in _fail" in stacks  # where it hangs
    assert set(committed(tmp_path / "run" / CHECKPOINTS)) <= {0, 1}
    again = starts.train(tmp_path, world, SETTINGS)
    assert again.wait() == [0] * world, again.text()


def main() -> None:
    rows = []
    for world in map(int, sys.argv[1:] or ["2"]):
        for phase in PLACES:
            for kind in KINDS:
                with tempfile.TemporaryDirectory() as folder:
                    codes, text, seconds = failed(Path(folder), phase, kind, world)
                    check(Path(folder), phase, kind, codes, text)
                rows.append([world, phase, kind, codes, round(seconds, 1)])
                print(json.dumps(rows[-1]), flush=True)


if __name__ == "__main__":
    main()
