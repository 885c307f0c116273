"""An exception on one rank of a run, over a process group whose teardown blocks, as NCCL's does."""

from __future__ import annotations

import pytest

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from adrpo_scale.cluster.status.base import FAILED
from adrpo_scale.cluster.status.read import read
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.run_rows import MEMORY as FILE
from adrpo_scale.run.folder import make_folder
from tests.support import starts
from tests.support.faults import RaiseAt
from tests.support.promptness import NO_TIMEOUTS, NotedRaise, check_prompt
from tests.support.ranks import LONGEST

BACKWARD = "adrpo_scale.engines.fsdp2:Fsdp2Engine.backward"
SETTINGS = ["iterations=3", "checkpoint.every_iterations=1", "evaluation.every=0"]
MEMORY = ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has none.")


def _failed(folder, fault):
    """(exit codes, what all ranks have written) of one more start."""
    start = starts.train(folder, 2, [*SETTINGS, *NO_TIMEOUTS], prepare=fault)
    return start.wait(others=LONGEST), start.text()


def test_an_exception_on_one_rank_is_told_at_once_and_ends_it_without_a_teardown(tmp_path):
    codes, text = _failed(tmp_path, RaiseAt(BACKWARD, 3, "KeyError", "to_q"))
    assert codes == [86, 1]
    assert "[rank 1 on " in text and "an exception in update:\nTraceback" in text
    assert text.count("KeyError: 'to_q'") == 1
    assert "[rank 0 on " in text and "lost another process" in text
    assert text.count("Traceback") == 1  # the one that says why


def test_memory_that_runs_out_on_one_rank_is_named_and_ends_the_run_the_second_time(tmp_path):
    fault = NotedRaise(BACKWARD, 2, *MEMORY, tmp_path)  # in the second iteration
    codes, text = _failed(tmp_path, fault)
    told = text.partition("[rank 1 on ")[2]
    assert codes == [86, 85]
    assert "error: memory ran out in iteration " in told and ", update: CUDA out of memory" in told
    assert "2.00 GiB. Try --set optimizer.micro_batch=1, --set engine.activation" in told
    assert "start again to resume" in told and "Traceback" not in text
    for rank in (0, 1):
        check_prompt(tmp_path, rank, is_at_fault=rank == 1)

    (done, *_) = sorted(committed(tmp_path / "run" / CHECKPOINTS), reverse=True)
    again = RaiseAt(BACKWARD, 2 - done, *MEMORY)
    codes, text = _failed(tmp_path, again)
    assert codes == [86, 2]
    assert "as in an earlier start, so that another one would end alike" in text
    state = judge(read(tmp_path / "run"))
    assert state.state == FAILED
    assert state.why.startswith("ran out of memory in update (iteration 2, rank 1 on ")


def test_what_a_start_leaves_before_its_config_is_written_is_no_strangers(tmp_path):
    """A rank may hang, or run out of memory, while the run is loaded for the first time."""
    (tmp_path / "stacks").mkdir()
    (tmp_path / FILE).touch()
    make_folder(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="not the folder of a run"):
        make_folder(tmp_path)
