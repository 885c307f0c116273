"""A benchmark of cells as it runs: in processes, recorded once, and none begun twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from pathlib import Path
from benchmarks.cells import Cell, Job, carry_out

def job(name, *settings):
    small = ("iterations=2", "evaluation.every=1", "evaluation.prompts=2")
    small += ("evaluation.samples_per_prompt=2", "prompts.per_iteration=2")
    cell = Cell(name, "configs/demo/dice_adrpo.toml", (*small, *settings))
    return Job(cell, 1, ("checker", "w2_sum"), ("divergence",))

if __name__ == "__main__":
    jobs = [job("whole"), job("stops", "limits.min_reward=1000.0"), job("fails", "prompts.train=x")]
    print("failed", carry_out(jobs, Path(sys.argv[1]), 2))
"""


@pytest.mark.slow
def test_cells_are_run_once_and_a_failure_is_no_record(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)

    def go() -> str:
        command = [sys.executable, str(script), str(tmp_path / "to")]
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = go()
    assert "3 runs, 3 to do" in said
    assert "failed ['fails-1']" in said
    records = {r["cell"]: r for r in json.loads((tmp_path / "to" / "joined.json").read_text())}
    assert sorted(records) == ["stops", "whole"]
    assert records["whole"]["outcome"] == "done"
    assert "limits.min_reward" in records["stops"]["outcome"]
    assert [i for i, _ in records["whole"]["evaluations"]["held_out checker"]] == [0, 1, 2]
    assert records["whole"]["evaluations"]["train w2_sum"][0] == [0, 0.0]
    assert len(records["whole"]["iterations"]["divergence"]) == 2
    assert records["whole"]["cpu_seconds"] > 0
    assert "set format to one of" in (tmp_path / "to" / "logs" / "fails-1.log").read_text()
    assert "3 runs, 1 to do" in go()
