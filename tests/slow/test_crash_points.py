"""Every file operation of one save, on each of two ranks: the process dies just before it, just
after it, or in the middle of a write, and the run resumes to the same bits."""

from __future__ import annotations

import re
import signal

import pytest

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import committed
from tests.support import starts
from tests.support.faults import FileOperations

# The second save is watched: it also removes the first.
SETTINGS = ["iterations=3", "checkpoint.every_iterations=1", "checkpoint.keep_last=1"]
WATCHED = "step-000002"
RENAMED = re.compile(r"rename checkpoints/step-000002\.[0-9a-f]+\.tmp")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    assert starts.train(folder, 2, SETTINGS).wait() == [0, 0]
    return folder / "run"


@pytest.fixture(scope="module")
def operations(tmp_path_factory):
    """(rank, number, what) of every file operation of the save."""
    folder = tmp_path_factory.mktemp("record")
    watch = FileOperations(WATCHED, record=folder / "operations")
    assert starts.train(folder, 2, SETTINGS, prepare=watch).wait() == [0, 0]
    return [
        (rank, number, line)
        for rank in (0, 1)
        for number, line in enumerate((folder / f"operations-{rank}.txt").read_text().splitlines())
    ]


def test_the_enumeration_is_of_the_whole_save(operations):
    for rank in (0, 1):
        done = [what.split()[0] for r, _, what in operations if r == rank]
        expected = {"mkdir", "open", "write", "fsync"}
        expected |= {"rename", "unlink", "rmdir"} if rank == 0 else set()
        assert set(done) == expected
    mine = [what for rank, _, what in operations if rank == 0]
    assert mine[:3] == ["open lock.json", "open metrics.jsonl", "fsync metrics.jsonl"]
    commit = next(k for k, what in enumerate(mine) if RENAMED.fullmatch(what))
    manifest = next(k for k, what in enumerate(mine) if what.endswith("/manifest.json"))
    assert mine[manifest].startswith("open checkpoints/step-000002.") and manifest < commit
    assert mine.index("rename checkpoints/step-000001") > commit
    assert mine[-1].startswith("rmdir checkpoints/step-000001.trash")


def test_the_run_survives_a_death_at_every_file_operation(operations, quiet, tmp_path):
    tried = 0
    for rank, number, what in operations:
        moments = ["before", "after"] + ["half"] * what.startswith("write")
        for moment in moments:
            folder = tmp_path / f"{rank}-{number}-{moment}"
            death = FileOperations(WATCHED, victim=rank, point=number, when=moment)
            start = starts.train(folder, 2, SETTINGS, prepare=death)
            assert start.wait()[rank] == -signal.SIGKILL, (what, moment, start.text())
            run = folder / "run"
            there = committed(run / "checkpoints")
            for iteration, path in there.items():
                assert list(Reader(path).faults()) == [], (what, moment)
                assert iteration in (1, 2)
            assert there, (what, moment)
            again = starts.train(folder, 2, SETTINGS)
            assert again.wait() == [0, 0], (what, moment, again.text())
            assert starts.records_of(run)[-1]["resumed_from"] == max(there), (what, moment)
            assert starts.differences(run, quiet) == [], (what, moment)
            assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-000003"]
            tried += 1
    print(f"\n{tried} crash points tried, {len(operations)} file operations on two ranks")
    assert tried >= 2 * len(operations)
