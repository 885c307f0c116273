"""A sweep by the real command, killed and gone on with, to the runs that each would be alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import begun
from tests.support import starts
from tests.support.ranks import FORKSERVER_ENV
from tests.support.shared import CACHE
from tests.support.starts import TINY, committed_iterations, records_of
from tests.support.tiny import CONFIGS
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BASE = CONFIGS / "demo" / "image_adrpo.toml"
SETTINGS = [*TINY, "iterations=40", "checkpoint.every_iterations=2", "evaluation.every=20"]


def sweep_file(folder):
    """2 x 2 runs of some seconds."""
    constant = (setting.partition("=") for setting in SETTINGS)
    once = {f'"{key}"': f"{key!r} = [{value}]" for key, _, value in constant}
    lines = [f'base = "{BASE}"', "[grid]", *once.values()]
    lines += ["seed = [0, 1]", '"algorithm.beta0" = [0.5, 2.0]']
    (folder / "four.toml").write_text("\n".join(lines) + "\n")
    return folder / "four.toml"


def test_a_sweep_that_is_killed_goes_on_to_the_same_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    file = sweep_file(tmp_path)
    env = os.environ | FORKSERVER_ENV | {"ADRPO_CACHE": str(CACHE)}

    def command(*words):
        line = [sys.executable, "-m", "adrpo_scale", *words]
        return subprocess.Popen(line, env=env, stdout=subprocess.PIPE, text=True)

    work = ("sweep", str(file), "--run", "--at-once", "2")
    first = command(*work)
    runs = begun(read_sweep(file))
    wait_until(lambda: max([0, *committed_iterations(runs[1].folder)]) >= 4, "a checkpoint", 400)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    # The kernel tells the elements under way to stop, and they save.
    ended = [run for run in runs if records_of(run.folder)]
    assert len(ended) == 2
    wait_until(lambda: all("exit_code" in records_of(r.folder)[-1] for r in ended), "their ends")
    assert {records_of(run.folder)[-1]["exit_code"] for run in ended} <= {85, 0}
    second = command(*work)
    text, _ = second.communicate()
    assert second.returncode == 0, text
    assert text.splitlines()[-1] == "4 done"
    assert [len(records_of(run.folder)) for run in runs[2:]] == [1, 1]
    assert max(len(records_of(run.folder)) for run in runs[:2]) == 2
    chosen = runs[1]
    sets = [word for setting in chosen.element.overrides for word in ("--set", setting)]
    alone = starts.Started(
        tmp_path / "start", 1, ["train", str(BASE), "--run-dir", str(tmp_path / "alone"), *sets]
    )
    assert alone.wait() == [0], alone.text()
    rows = [(path / "eval.jsonl").read_text() for path in (chosen.folder, tmp_path / "alone")]
    (chosen.folder / "eval.jsonl").write_text(rows[0].replace(chosen.folder.name, "alone"))
    assert starts.differences(chosen.folder, tmp_path / "alone") == []
