"""A sweep beside its runs: its price, its states, and the processes that work through it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.plan.disk import checkpoints_bytes
from adrpo_scale.cluster.sweep import size, view, work
from adrpo_scale.cluster.sweep.state import states_of, to_do
from adrpo_scale.run.sweep import Element, read_sweep
from adrpo_scale.run.sweep_record import note_error
from adrpo_scale.run.sweep_runs import begun
from tests.support.plans import config_of
from tests.support.tiny import CONFIGS
from tests.support.waiting import wait_until

SIX = f"""base = "{CONFIGS}/demo/image_adrpo.toml"
[grid]
seed = [0, 1, 2]
"algorithm.beta0" = [0.5, 2.0]
iterations = [6]
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("PATH", os.environ["PATH"].replace("/slurm", "/none"))
    (tmp_path / "six.toml").write_text(SIX)
    return read_sweep(tmp_path / "six.toml")


# ---- price -------------------------------------------------------------------------------------


def test_hours_are_those_until_the_last_run_ends():
    assert size.makespan([3, 1, 1, 1], 2) == 3
    assert size.makespan([1, 1, 3], 2) == 4
    assert size.makespan([2, 2], 9) == 2


def test_disk_counts_what_stays():
    config = config_of(
        CONFIGS / "demo" / "image_adrpo.toml",
        *("checkpoint.keep_every=20", "checkpoint.keep_trajectory=10", "ema_decay=0.9"),
    )
    assert checkpoints_bytes(config, 100) == 400 * (4 * (3 + 3) + 6)
    short = config_of(CONFIGS / "demo" / "image_adrpo.toml", "iterations=1")
    assert checkpoints_bytes(short, 100) == 400 * 3 * 2


# ---- states ------------------------------------------------------------------------------------


def give(run, *starts, iterations=6):
    """A run folder with records of starts, (outcome, exit code, iteration) each."""
    (run / "lives").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"iterations": iterations}))
    for number, (outcome, code, iteration) in enumerate(starts, 1):
        record = {
            "began": f"2026-01-0{number}T00:00:00+00:00",
            "world_size": 1,
            "outcome": outcome,
            "exit_code": code,
            "iteration": iteration,
        }
        if code is not None:
            record["ended"] = f"2026-01-0{number}T01:00:00+00:00"
        (run / "lives" / f"{number:02d}.json").write_text(json.dumps(record))


DIVERGED = (
    "iteration 4: divergence 5.2 is above limits.max_divergence = 5.0; the policy has left the "
    "reference: start from an earlier checkpoint"
)


def test_a_line_says_how_many_and_why(sweep):
    assert view.line(states_of(sweep)) == "6 to do"
    runs = begun(sweep)
    give(runs[0].folder, ("done", 0, 6))
    give(runs[1].folder, (None, None, None), ("done", 0, 6))
    give(runs[2].folder, (DIVERGED, 3, 4))
    give(runs[3].folder, ("domain.model: no such model; prefetch it", 2, -1))
    give(runs[4].folder, ("stopped by SIGUSR1", 85, 3))
    states = states_of(sweep)
    assert view.line(states) == (
        "2 done · 1 limit (#2 seed=1 beta0=0.5: divergence, iteration 4) · "
        "1 failed (#3 seed=1 beta0=2.0: domain.model: no such model; prefetch it) · "
        "1 stopped · 1 to do · "
        "1 started again (#1 seed=0 beta0=2.0: start 1 ended without a word)"
    )
    assert [one.element.number for one in to_do(states)] == [4, 5]
    assert [one.element.number for one in to_do(states, ["failed"])] == [3, 4, 5]
    facts = view.facts(states)
    assert facts[2]["state"] == "limit" and facts[2]["settings"]["algorithm.beta0"] == 0.5
    assert facts[0]["status"]["state"] == "done" and facts[5]["status"] is None
    json.dumps(facts)


def test_a_run_of_another_sweep_with_fewer_iterations_is_to_do(sweep):
    give(begun(sweep)[0].folder, ("done", 0, 3), iterations=3)
    assert view.line(states_of(sweep)) == "6 to do"


def test_a_start_that_never_reached_its_folder_has_failed(sweep):
    runs = begun(sweep)
    give(runs[0].folder, ("done", 0, 6))
    give(runs[1].folder, (None, None, None))
    for number in (0, 1, 5):
        note_error(sweep, sweep.elements[number], 4, "preflight ended with exit code 4")
    states = states_of(sweep)
    assert [one.state for one in states] == ["done", "failed", *["to do"] * 3, "failed"]
    assert states[5].why == "preflight ended with exit code 4"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (DIVERGED, "divergence, iteration 4"),
        ("iteration 9: mean reward -3 is below limits.min_reward = -2", "reward, iteration 9"),
        ("job 7: 3 starts in a row (limits.max_stalled_lives = 3)", "stalled starts, iteration 2"),
    ],
)
def test_a_limit_is_named_with_its_iteration(sweep, outcome, expected):
    give(begun(sweep)[0].folder, (outcome, 3, 2))
    assert states_of(sweep)[0].why == expected


# ---- processes ---------------------------------------------------------------------------------


def bash(folder, *scripts):
    """A job per script; `$log` is its own log's folder."""
    return [
        work.Job(
            Element(number, "", {}, f"job{number}"),
            ["bash", "-c", script],
            folder / "logs" / f"{number}.txt",
        )
        for number, script in enumerate(scripts)
    ]


def test_codes_logs_and_accidents(tmp_path):
    told = []
    worker = work.Worker(2, [], told.append)
    once = f"[[ -e {tmp_path}/seen ]] && exit 0; touch {tmp_path}/seen; kill -KILL $$"
    scripts = ["echo fine", "echo 'error: no such key'; echo more; exit 2", once, "exit 86"]
    worker.work(bash(tmp_path, *scripts))
    assert worker.codes == {0: 0, 1: 2, 2: 0, 3: 86}
    assert (tmp_path / "logs/0.txt").read_text() == "fine\n"
    assert "#1 job1: exit code 2, error: no such key" in told
    assert any("#2 job2: exit code 137, started again" in line for line in told)
    assert any("#3 job3: exit code 86, left after 3 accidents" in line for line in told)
    assert work.exit_code_of(worker.codes, False) == 2


@pytest.mark.parametrize(
    ("codes", "was_stopped", "expected"),
    [([0, 0], False, 0), ([0, 3, 2], False, 2), ([0, 137], False, 86), ([0, 2, 85], True, 85)],
)
def test_the_exit_code_of_all(codes, was_stopped, expected):
    assert work.exit_code_of(dict(enumerate(codes)), was_stopped) == expected


def test_at_most_so_many_at_once_each_on_a_gpu_of_its_own_and_no_rank(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    script = (
        f"d={tmp_path}/$CUDA_VISIBLE_DEVICES; mkdir $d || exit 9; sleep .3; rmdir $d; "
        'echo "$CUDA_VISIBLE_DEVICES $RANK $WORLD_SIZE $SLURM_STEP_NUM_TASKS $SLURM_JOB_ID"'
    )
    worker = work.Worker(2, ["4", "5"], lambda line: None)
    worker.work(bash(tmp_path, *[script] * 4))
    assert worker.codes == dict.fromkeys(range(4), 0)  # no two on one GPU at a time
    said = {(tmp_path / f"logs/{n}.txt").read_text().strip() for n in range(4)}
    assert said == {"4    7", "5    7"}


def test_a_signal_stops_what_runs_and_begins_nothing_more(tmp_path):
    script = f"trap 'exit 85' TERM; touch {tmp_path}/on; while :; do sleep .1; done"
    worker = work.Worker(1, [], lambda line: None)

    def send():
        wait_until((tmp_path / "on").exists, "the first job")
        os.kill(os.getpid(), signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    worker.work(bash(tmp_path, script, script))
    thread.join()
    assert worker.codes == {0: 85} and worker.signals == 1
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


CHILD = """
import signal, sys, time
from pathlib import Path
from adrpo_scale.cluster.sweep.work import end_with_sweep
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "told").touch(), sys.exit()))
end_with_sweep()
(folder / "on").touch()
time.sleep(100)
"""
PARENT = """
import sys
from pathlib import Path
from adrpo_scale.cluster.sweep.work import Job, Worker
from adrpo_scale.run.sweep import Element
child, folder = sys.argv[1:]
command = [sys.executable, "-c", child, folder]
Worker(1, [], print).work([Job(Element(0, "", {}, ""), command, Path(folder, "log"))])
"""


def test_what_runs_is_asked_to_stop_when_the_sweep_is_killed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)])
    wait_until((tmp_path / "on").exists, "the element")
    process.kill()
    process.wait()
    wait_until((tmp_path / "told").exists, "SIGTERM of the element")


# ---- the command -------------------------------------------------------------------------------


def shown(*words):
    answer = CliRunner().invoke(cli.app, [*map(str, words)])
    return answer.exit_code, answer.stdout, answer.exception


def test_a_sweep_is_listed_with_the_line_for_slurm(sweep, tmp_path):
    code, text, _ = shown("sweep", sweep.file)
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith(f"#0 seed=0 beta0=0.5: {tmp_path}/runs/demo_image_adrpo,seed=0,")
    assert lines[6:] == [f"on Slurm: sbatch --nodes=1 --array=0-5 slurm/sweep.sbatch {sweep.file}"]
    assert not (tmp_path / "runs").exists()


def test_again_lists_the_elements_of_a_state(sweep):
    give(begun(sweep)[4].folder, ("rewards.0 cannot be imported", 2, -1))
    _, text, _ = shown("sweep", sweep.file, "--again", "failed")
    assert text.splitlines() == [
        "#4 seed=2 beta0=0.5: failed, rewards.0 cannot be imported",
        f"on Slurm: sbatch --nodes=1 --array=4 slurm/sweep.sbatch {sweep.file}",
    ]
    assert shown("sweep", sweep.file, "--again", "limit")[1] == "no element is limit\n"


def test_status_and_report_take_a_sweep(sweep):
    assert shown("status", "--sweep", sweep.file)[1] == "6 to do\n"
    error = shown("report", "--sweep", sweep.file)[2]
    assert "no element has begun; 6 to do" in str(error)
    runs = begun(sweep)
    for number, run in enumerate(runs[:2]):
        give(run.folder, ("done", 0, 6))
        row = {"run": run.folder.name, "algorithm": "adrpo", "seed": 0, "split": "train", "n": 4}
        rows = [row | {"iteration": k, "metric": "reward", "value": number} for k in (0, 6)]
        (run.folder / "eval.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        (run.folder / "config.json").write_text(json.dumps(run.loaded.config.resolved()))
    give(runs[2].folder, (DIVERGED, 3, 4))
    code, text, _ = shown("report", "--sweep", sweep.file)
    assert code == 0 and "beta0 = 0.5" in text and "beta0 = 2.0" in text
    why = "2 done · 1 limit (#2 seed=1 beta0=0.5: divergence, iteration 4) · 3 to do"
    assert text.splitlines()[-1] == f"{sweep.file}: {why}"
    assert shown("status", "--sweep", sweep.file)[1] == f"{why}\n"
    (facts, *_) = json.loads(shown("status", "--sweep", sweep.file, "--json")[1])
    assert facts["element"] == 0 and facts["state"] == "done"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--run", "--dry-run"], "--dry-run with --run: give one of them"),
        (["--again", "done"], "--again done: expected failed or limit"),
        (["--again", "failed", "--element", "1"], "--again with --element"),
        (["--run", "--per-node", "8"], "on this machine it is --at-once"),
        (["--dry-run", "--per-node", "8", "--nodes", "2"], "a run shares one node"),
        (["--element", "6"], "--array=0-5"),
        (["--element", "1", "--per-node", "6"], "--array=0-0"),
    ],
)
def test_options_that_contradict_each_other(sweep, words, expected):
    assert expected in str(shown("sweep", sweep.file, *words)[2])


def test_status_and_report_without_a_run_say_what_to_name(sweep):
    for command in ("status", "report"):
        assert "or --sweep FILE" in str(shown(command)[2])
    assert "give one of them" in str(shown("status", "x", "--sweep", sweep.file)[2])
