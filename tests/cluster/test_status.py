"""`adrpo-scale status`: from real run folders, and from facts written down by hand.

What squeue prints was recorded from Slurm 22.05.8; the `squeue` here is a script that prints it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.status import queue
from adrpo_scale.cluster.status import read as folders
from adrpo_scale.cluster.status.base import (
    DONE,
    FAILED,
    KILLED,
    NEW,
    QUEUED,
    RUNNING,
    STARTING,
    STOPPED,
    Evaluation,
    Holder,
    QueueEntry,
    Row,
    RunFacts,
    Saved,
)
from adrpo_scale.cluster.status.state import judge
from adrpo_scale.cluster.status.view import duration
from adrpo_scale.core.errors import STOPPED as REQUEUE
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.folder_lock import RunLock
from adrpo_scale.run.past_starts import Found, PastStart
from tests.support import starts
from tests.support.faults import DieAt

ROLLOUT = "adrpo_scale.domains.flow:FlowDomain.sample"
SETTINGS = ["iterations=6", "checkpoint.every_iterations=2", "evaluation.every=3"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder of a run after its first start, killed in iteration 4, and after its second, which
    resumed from the checkpoint of iteration 2 and came to the end."""
    folder = tmp_path_factory.mktemp("status")
    evaluations = 2  # of rollouts before the first iteration: both splits
    saved = folder / "run" / "checkpoints" / "step-000002"
    at = DieAt(ROLLOUT, 4 + evaluations * 2, saved)
    start = starts.train(folder, 1, SETTINGS, prepare=at)
    assert start.wait() == [-signal.SIGKILL], start.text()
    shutil.copytree(folder / "run", folder / "killed")
    start = starts.train(folder, 1, SETTINGS)
    assert start.wait() == [0], start.text()
    (folder / "run").rename(folder / "done")
    return folder


def status_of(folder):
    return judge(folders.read(folder))


def shown(*line):
    return CliRunner().invoke(cli.app, ["status", *map(str, line)], env={"PATH": "/nowhere"})


def snapshot(folder):
    """Every file's content and time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


# ---- real folders ------------------------------------------------------------------------------


def test_a_killed_run_says_what_it_will_do_again(real):
    status = status_of(real / "killed")
    assert status.state == KILLED and "the process has ended without a word" in status.why
    assert (status.iteration, status.iterations, status.starts) == (3, 6, 1)
    assert (status.checkpoint_iteration, status.at_risk_iterations) == (2, 1)
    assert status.at_risk_seconds > 0 and status.checkpoint_bytes > 10_000
    assert status.seconds_left == pytest.approx(3 * status.seconds_per_iteration)
    assert status.evaluation.before is not None and status.evaluation.now is not None


def test_a_resumed_run_counts_its_starts_and_what_was_done_again(real):
    before, status = status_of(real / "killed"), status_of(real / "done")
    assert status.state == DONE and status.starts == 2
    assert (status.iteration, status.at_risk_iterations) == (6, 0)
    assert status.lost_iterations == 1
    assert status.lost_seconds == pytest.approx(before.at_risk_seconds, abs=1e-3)
    assert 0 <= status.between_seconds < 60  # of clocks that show seconds
    assert 0 <= status.hours < 0.1 and not status.on_gpus


def test_a_run_is_running_while_its_folder_is_held(real, tmp_path):
    run = shutil.copytree(real / "killed", tmp_path / "run")
    (run / "lock.json").unlink()
    with RunLock(run):
        status = status_of(run)
        assert status.state == RUNNING and f"process {os.getpid()}" in status.why
        assert status.at_risk_iterations == 1 and status.at_risk_seconds > 0
    assert status_of(run).state == KILLED


def test_the_owner_is_dead_after_a_long_silence(real, tmp_path):
    run = shutil.copytree(real / "killed", tmp_path / "run")
    lock = json.loads((run / "lock.json").read_text())
    elsewhere = {**lock, "machine": "another", "host": "a6000-07", "job_id": "17"}
    (run / "lock.json").write_text(json.dumps(elsewhere))
    status = status_of(run)
    assert status.state == RUNNING and "job 17, host a6000-07" in status.why
    old = time.time() - 200
    os.utime(run / "lock.json", (old, old))
    status = status_of(run)
    assert status.state == KILLED and "no heartbeat for 200 s" in status.why


def test_a_run_that_is_written_to_at_this_moment_is_read_as_far_as_it_is(real, tmp_path):
    run = shutil.copytree(real / "done", tmp_path / "run")
    whole = status_of(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 7, "rewa')
    with (run / "eval.jsonl").open("ab") as file:
        file.write(b'{"iteration": 7, "spl\xc3')
    (run / "checkpoints" / "step-000099.tmp").mkdir()
    (run / "checkpoints" / "step-000098").mkdir()  # its manifest is gone already
    (run / "lives" / "03.json").write_text("{")
    again = status_of(run)
    ages = {"checkpoint_age": 0.0}
    assert replace(again, **ages) == replace(whole, **ages)


@pytest.mark.parametrize("name", ["metrics.jsonl", "eval.jsonl", "checkpoints", "lives"])
def test_what_is_not_there_is_not_shown(real, tmp_path, name):
    run = shutil.copytree(real / "done", tmp_path / "run")
    gone = run / name
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    assert shown(run).exit_code == 0
    status = status_of(run)
    assert status.iteration == 6 and (name == "lives") == (status.state != DONE)


def test_it_writes_nothing_into_the_folder(real):
    before = snapshot(real / "killed")
    assert shown(real / "killed").exit_code == 0
    assert shown(real / "killed", real / "done", "--json").exit_code == 0
    assert snapshot(real / "killed") == before


def test_one_run_is_a_block_of_lines_and_several_are_a_table(real):
    block = shown(real / "done").output.splitlines()
    assert [line.split()[0] for line in block] == (
        ["run", "state", "iteration", "reward", "time", "checkpoint", "starts", "used"]
    )
    assert "6 of 6" in block[2] and "evaluated on held_out: " in block[3]
    table = shown(real / "killed", real / "done").output
    rows = [line for line in table.splitlines() if "/6" in line]
    assert ["killed" in row for row in rows] == [True, False]
    assert "done" in rows[1]


def test_folders_that_are_no_runs_are_named_and_the_others_shown(real, tmp_path):
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "trial.json").write_text("{}")
    names = [tmp_path / "nowhere", real / "done", tmp_path, tmp_path / "trial"]
    answer = shown(*names)
    assert answer.exit_code == 2 and "6 of 6" in answer.output
    for text in ("nowhere is not there", "is not the folder of a run", "is the folder of a trial"):
        assert answer.stderr.count(text) == 1
    beside, alone = shown(real / "done", tmp_path / "trial"), shown(tmp_path / "trial")
    assert (beside.exit_code, alone.exit_code) == (0, 2)
    assert beside.stderr.startswith("note: ") and alone.stderr.startswith("error: ")
    answers = json.loads(shown(*names, "--json").stdout)
    assert [answer["error"] is None for answer in answers] == [False, True, False, False]
    assert answers[1]["state"] == DONE and answers[1]["checkpoint_iteration"] == 6


def test_json_has_the_same_keys_whatever_is_known(real, tmp_path):
    empty = tmp_path / "run"
    (empty / "lives").mkdir(parents=True)
    one, two = json.loads(shown(real / "done", empty, "--json").stdout)
    assert one.keys() == two.keys()
    assert (two["state"], two["iterations"], two["checkpoint_age"]) == (NEW, None, None)


def test_it_needs_no_torch(real):
    code = (
        "import sys; sys.argv = ['adrpo-scale', 'status', sys.argv[1]]\n"
        "from adrpo_scale.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(real / "done")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_numbers_outside_their_range_are_lines_with_the_key(tmp_path):
    (tmp_path / "lives").mkdir()
    (tmp_path / "config.json").write_text('{"algorithm": {"name": "adrpo"}}')
    row = {"reward": 1.0, "grad_norm": 0.1, "advantage_abs_mean": 0.01, "gradient_signal": 0.2}
    lines = [json.dumps({"iteration": n, **row}) + "\n" for n in range(1, 13)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    said = [line for line in shown(tmp_path).output.splitlines() if line.startswith("tuning ")]
    assert len(said) == 1 and "algorithm.scale" in said[0]
    assert "advantage_abs_mean of the first 12 is 0.01, expected at least 0.05" in said[0]
    (document,) = json.loads(shown(tmp_path, "--json").stdout)
    assert len(document["tuning"]) == 1
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:9]))  # too few to judge
    assert "tuning" not in shown(tmp_path).output


# ---- facts written down by hand ----------------------------------------------------------------

HOUR = 3600.0
NOW = 100 * HOUR
ALIVE = Holder("job 7, host a", "a", "7", silence=5.0, expiry=120.0)


def start(number=1, began=NOW - HOUR, world=8, **more):
    return PastStart(number, began, world, **({"gpus": world} | more))


def rows(count, seconds=10.0, between=0.0):
    return tuple(Row(n, float(n), seconds, between) for n in range(1, count + 1))


def entry(state, reason=""):
    return QueueEntry("7", "train", state, reason, None, None, "")


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        (NEW, RunFacts("r", NOW)),
        (RUNNING, RunFacts("r", NOW, holder=ALIVE)),
        (RUNNING, RunFacts("r", NOW, starts=(start(),), holder=ALIVE, queue=entry("RUNNING"))),
        (DONE, RunFacts("r", NOW, starts=(start(exit_code=0),), queue=entry("RUNNING"))),
        (FAILED, RunFacts("r", NOW, starts=(start(exit_code=2),), queue=entry("COMPLETING"))),
        (STOPPED, RunFacts("r", NOW, starts=(start(exit_code=REQUEUE),))),
        (STOPPED, RunFacts("r", NOW, starts=(start(exit_code=REQUEUE),), queue=entry("COMPLETED"))),
        (QUEUED, RunFacts("r", NOW, starts=(start(exit_code=REQUEUE),), queue=entry("PENDING"))),
        (STARTING, RunFacts("r", NOW, starts=(start(exit_code=REQUEUE),), queue=entry("RUNNING"))),
        (KILLED, RunFacts("r", NOW, starts=(start(),))),
        (KILLED, RunFacts("r", NOW, starts=(start(),), holder=replace(ALIVE, silence=121.0))),
        (KILLED, RunFacts("r", NOW, starts=(start(),), holder=replace(ALIVE, has_ended=True))),
        (QUEUED, RunFacts("r", NOW, starts=(start(),), queue=entry("PENDING", "NodeDown"))),
    ],
)
def test_states(expected, facts):
    assert judge(facts).state == expected


def test_a_failure_is_stated_in_one_line():
    failed = start(exit_code=3, outcome="divergence 9 is too large\nlower the learning rate")
    assert judge(RunFacts("r", NOW, starts=(failed,))).why == (
        "divergence 9 is too large (exit code 3)"
    )


def test_time_left_counts_evaluations_and_saves_and_not_the_warm_up():
    slow = Row(1, 1.0, 500.0, 0.0)
    steady = tuple(Row(n, 1.0, 10.0, 20.0 if n % 5 == 1 else 0.0) for n in range(2, 21))
    facts = RunFacts(
        "r",
        NOW,
        iterations=100,
        evaluation_every=5,
        rows=(slow, *steady),
        starts=(start(),),
        holder=ALIVE,
    )
    status = judge(facts)
    assert status.seconds_per_iteration == pytest.approx(14.0)  # two rounds of five
    assert status.seconds_left == pytest.approx(80 * 14.0)
    assert judge(replace(facts, rows=(slow,))).seconds_per_iteration == 500.0


def test_a_start_on_other_gpus_is_timed_by_its_own_iterations():
    slow, fast = rows(20, 10.0), tuple(Row(n, 1.0, 2.0) for n in range(21, 24))
    starts_ = (start(1), start(2, NOW - 60, resumed_from=20))
    facts = RunFacts("r", NOW, rows=(*slow, *fast), starts=starts_)
    assert judge(facts).seconds_per_iteration > 2  # one warm-up and two others
    facts = replace(facts, rows=(*facts.rows, Row(24, 1.0, 2.0)))
    assert judge(facts).seconds_per_iteration == 2


def test_the_reward_is_the_mean_of_the_last_ten_that_had_one():
    measured = (*rows(11), Row(12, None, 10.0))
    assert judge(RunFacts("r", NOW, rows=measured)).reward == pytest.approx(7.0)
    assert judge(RunFacts("r", NOW)).reward is None


def test_work_at_risk_is_counted_from_the_commit_or_from_the_begin_of_this_start():
    facts = RunFacts("r", NOW, rows=rows(7), starts=(start(began=NOW - 90),), holder=ALIVE)
    recent = replace(facts, checkpoint=Saved(5, NOW - 30, 1))
    assert (judge(recent).at_risk_iterations, judge(recent).at_risk_seconds) == (2, 30)
    earlier = judge(replace(facts, checkpoint=Saved(5, NOW - 4000, 1)))
    assert (earlier.at_risk_iterations, earlier.at_risk_seconds) == (2, 90)
    nothing = judge(facts)
    assert (nothing.at_risk_iterations, nothing.at_risk_seconds) == (7, 90)


def test_hours_lost_work_and_queue_time_over_three_starts():
    first = start(1, NOW - 10 * HOUR)  # killed: no end is recorded
    found = Found(iterations=4, seconds=400.0, last_line=NOW - 8 * HOUR)
    second = start(
        2,
        NOW - 7 * HOUR,
        world=4,
        found=found,
        resumed_from=6,
        ended=NOW - 6 * HOUR,
        exit_code=REQUEUE,
        iteration=20,
    )
    third = start(3, NOW - HOUR, resumed_from=18)  # a record without `found`
    facts = RunFacts("r", NOW, rows=rows(30), starts=(first, second, third), holder=ALIVE)
    status = judge(facts)
    assert status.hours == pytest.approx(8 * 2 + 4 * 1 + 8 * 1) and status.on_gpus
    assert (status.lost_iterations, status.lost_seconds) == (4 + 2, 400.0 + 2 * 10.0)
    assert status.between_seconds == pytest.approx(1 * HOUR + 5 * HOUR)


def test_a_killed_start_lasted_until_its_last_sign():
    dead = replace(ALIVE, silence=1800.0)
    facts = RunFacts("r", NOW, starts=(start(),), holder=dead, last_line=NOW - 2000)
    assert judge(facts).hours == pytest.approx(8 * 0.5)
    assert judge(replace(facts, holder=None, last_line=None)).hours == 0


def test_durations_are_worded_as_by_people():
    times = (0, 0.33, 9.94, 59, 60, 3599, 7500, 86400 * 3 + 4 * 3600)
    words = ("0 s", "0.33 s", "9.9 s", "59 s", "1 min", "1 h 00 min", "2 h 05 min", "3 d 04 h")
    assert tuple(map(duration, times)) == words


# ---- the queue ---------------------------------------------------------------------------------

RECORDED = """\
2|PENDING|Resources|2026-11-21T20:24:25|5:00||big
4|PENDING|Dependency|N/A|UNLIMITED||chain
1|RUNNING|None|2026-11-21T20:14:25|9:53|a6000-01|a|b
"""


def squeue(folder, body):
    """A program of that name, first on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "squeue").write_text(f"#!/bin/sh\n{body}\n")
    (folder / "squeue").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_lines_of_squeue_are_read():
    found = queue.parse(RECORDED + "slurm_load_jobs error: Invalid job id specified\n\n1|2\n")
    big = QueueEntry("2", "big", "PENDING", "Resources", "2026-11-21T20:24:25", "5:00", "")
    assert found["2"] == big
    assert found["4"] == QueueEntry("4", "chain", "PENDING", "Dependency", None, None, "")
    assert found["1"].name == "a|b" and found["1"].reason == ""
    assert found.keys() == {"1", "2", "4"}


def test_what_squeue_says_is_shown(real, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", squeue(tmp_path / "bin", f"echo \"$@\" >&2; cat <<'E'\n{RECORDED}E"))
    run = shutil.copytree(real / "killed", tmp_path / "run")
    record = json.loads((run / "lives" / "01.json").read_text())
    (run / "lives" / "01.json").write_text(json.dumps({**record, "job_id": "2"}))
    output = CliRunner().invoke(cli.app, ["status", str(run)]).output
    assert "state      queued: " in output
    assert "job 2 (big) PENDING: Resources, expected to start 2026-11-21T20:24:25" in output


def test_a_queue_that_does_not_answer_keeps_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "SECONDS", 0.2)
    monkeypatch.setenv("PATH", squeue(tmp_path / "bin", "exec sleep 30"))
    begin = time.monotonic()
    assert queue.ask(["1"]) == {}
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    "body", ["echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "kill -9 $$"]
)
def test_a_queue_that_fails_is_passed_over(tmp_path, monkeypatch, body):
    monkeypatch.setenv("PATH", squeue(tmp_path / "bin", body))
    assert queue.ask(["1"]) == {}


def test_without_slurm_there_is_no_queue(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert queue.ask(["1"]) == {}


def test_what_is_no_run_is_an_error(tmp_path):
    with pytest.raises(RunFolderError, match="is not there"):
        folders.read(tmp_path / "nowhere")


def test_the_evaluation_is_of_held_out_prompts_where_there_are_some(tmp_path):
    (tmp_path / "lives").mkdir()
    row = {"metric": "reward", "split": "train", "value": 1.0, "iteration": 0}
    lines = [row, row | {"iteration": 5, "value": 3.0}]
    write = (tmp_path / "eval.jsonl").write_text
    write("".join(json.dumps(line) + "\n" for line in lines))
    assert folders.read(tmp_path).evaluation == Evaluation("train", 1.0, 3.0)
    lines.append(row | {"split": "held_out", "value": 2.0})
    write("".join(json.dumps(line) + "\n" for line in lines))
    assert folders.read(tmp_path).evaluation == Evaluation("held_out", 2.0, None)
