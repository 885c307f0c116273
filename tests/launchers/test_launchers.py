"""launchers/ and slurm/ as shell scripts: what they start, what they pass on, what they say.

Ranks are played by bash here, so that a test takes a moment; tests/slurm starts real ones.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
LAUNCHERS = sorted((ROOT / "launchers").glob("*.sh"))
SCRIPTS = [*LAUNCHERS, *sorted((ROOT / "slurm").glob("*.sbatch"))]
JOBS = ("train", "sweep", "evaluate", "prepare")  # scripts whose body is slurm/job.sh
NODE = ROOT / "launchers/node.sh"
SHOW = 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK/$LOCAL_WORLD_SIZE $MASTER_ADDR $OMP_NUM_THREADS"'


def environment(**more: str) -> dict[str, str]:
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("SLURM_", "ADRPO_", "OMP_"))}
    return kept | {"ADRPO_PYTHON": "bash", "ADRPO_PATIENCE": "1"} | more


def node(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    """node.sh with `bash -c script` for a rank."""
    command = [str(NODE), "-c", script]
    return subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=240
    )


def by_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "slurm/job.sh"], ids=by_name)
def test_shellcheck_has_nothing_to_say(script):
    if shutil.which("shellcheck") is None and "ADRPO_REQUIRE_SLURM" not in os.environ:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", LAUNCHERS, ids=by_name)
def test_launchers_are_short(script):
    assert len(script.read_text().splitlines()) < 80
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("script", SCRIPTS, ids=by_name)
def test_without_arguments_a_script_says_how_it_is_used(script):
    env = environment(SLURM_SUBMIT_DIR=str(ROOT))
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert done.returncode == 2
    assert script.name in text
    assert any(word in text for word in ("CONFIG", "RUN", "configs/", "train_qa.json")), text


@pytest.mark.parametrize("name", JOBS)
def test_a_job_submitted_from_elsewhere_says_where_to_submit_it(tmp_path, name):
    script = ROOT / f"slurm/{name}.sbatch"
    env = environment(SLURM_SUBMIT_DIR=str(tmp_path))
    done = subprocess.run(["bash", str(script), "x.toml"], env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "in the checkout's folder: sbatch" in done.stderr


def test_every_rank_knows_its_place():
    facts = {"ADRPO_NODES": "n1,n2,n3", "ADRPO_PROCESSES": "2", "SLURM_NODEID": "1"}
    done = node(SHOW, **facts, OMP_NUM_THREADS="4")
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == ["2/6 0/2 n1 4", "3/6 1/2 n1 4"]


def test_one_process_per_gpu_and_the_cores_shared():
    done = node(SHOW, SLURM_GPUS_ON_NODE="2")
    threads = max(1, os.cpu_count() // 2)
    host = os.uname().nodename
    assert sorted(done.stdout.splitlines()) == [
        f"{rank}/2 {rank}/2 {host} {threads}" for rank in (0, 1)
    ]


def test_the_prefix_stands_before_every_process():
    done = node("echo $TAG $RANK", ADRPO_PREFIX="env TAG=inside", ADRPO_PROCESSES="2")
    assert sorted(done.stdout.split()) == ["0", "1", "inside", "inside"]


def test_the_first_bad_exit_decides_and_the_rest_get_some_time(tmp_path):
    script = "case $RANK in 0) exec sleep 99;; 1) exit 3;; 2) sleep .8; echo saved; exit 1;; esac"
    begin = time.monotonic()
    done = node(script, ADRPO_PROCESSES="3", ADRPO_EXITS=str(tmp_path))
    assert done.returncode == 3 and time.monotonic() - begin < 20
    assert "rank 1 ended with code 3" in done.stderr and "saved" in done.stdout
    assert (tmp_path / "0").read_text() == "3\n"


def test_a_message_that_nobody_reads_ends_nothing(tmp_path):
    """Bash dies of a closed pipe; the ranks that are still saving would be killed later."""
    reader, writer = os.pipe()
    os.close(reader)
    script = f"((RANK)) && exit 3; sleep .8; touch {tmp_path}/saved; exit 1"
    env = environment(ADRPO_PROCESSES="2", ADRPO_PATIENCE="60", ADRPO_EXITS=str(tmp_path))
    done = subprocess.run([str(NODE), "-c", script], env=env, stderr=writer, timeout=240)
    assert done.returncode == 3
    assert (tmp_path / "saved").exists() and (tmp_path / "0").read_text() == "3\n"


def test_a_rank_that_lost_another_one_does_not_decide(tmp_path):
    done = node("((RANK)) || exit 86; sleep .7; exit 5", ADRPO_PROCESSES="2")
    assert done.returncode == 5
    facts = {"ADRPO_NODES": "a,b", "ADRPO_NODE": "1", "ADRPO_EXITS": str(tmp_path)}
    assert node("exit 86", **facts).returncode == 86
    assert (tmp_path / "1").read_text() == "86\n"


def test_rank_0_may_work_on_when_the_others_are_done():
    """Its summary may take longer than the patience, which is for those that lost somebody."""
    done = node("((RANK)) && exit 0; sleep 3; echo summary", ADRPO_PROCESSES="2")
    assert (done.returncode, done.stdout) == (0, "summary\n")


def test_by_srun_alone_the_hosts_are_those_of_the_step(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'n1\\nn2\\n'\n")
    scontrol.chmod(0o755)
    step = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_JOB_ID": "3", "SLURM_STEP_ID": "0"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = node('echo "$RANK/$WORLD_SIZE $MASTER_ADDR $MASTER_PORT"', **step, PATH=path)
    assert done.stdout == "0/2 n1 20021\n"


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM", "SIGHUP"])
def test_a_signal_reaches_every_rank_also_one_that_is_still_starting(name, tmp_path):
    """A rank that is importing would die of it, or, if it were sent once, never know of it."""
    script = """if True:
        import os, pathlib, signal, sys, time
        def told(*_):  # once, however often it is sent: a second one would cut off the writing
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            os.write(1, b"told\\n")
            os._exit(85)
        pathlib.Path(sys.argv[1], "starting-" + os.environ["RANK"]).touch()
        while not pathlib.Path(sys.argv[1], "sent").exists():
            time.sleep(0.01)  # imports
        signal.signal(signal.SIGUSR1, told)
        time.sleep(60)"""
    command = [str(NODE), "-S", "-c", script, str(tmp_path)]
    # Longer than the time between two sends: a rank that was late for the first waits for the next.
    patience = {"ADRPO_PATIENCE": "60"}
    env = environment(ADRPO_PROCESSES="2", ADRPO_PYTHON=sys.executable, **patience)
    process = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        # A shell cannot trap what it was started with as ignored: these tests, under nohup.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    wait_until(lambda: len(list(tmp_path.glob("starting-*"))) == 2, "two ranks that start")
    process.send_signal(getattr(signal, name))
    (tmp_path / "sent").touch()
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 85
    assert text.splitlines() == ["told", "told"]


def test_local_starts_as_many_processes_as_asked_for(tmp_path):
    rank = tmp_path / "rank"
    rank.write_text(f'#!/bin/bash\n[[ $1 == -c ]] && echo 12345 && exit\n{SHOW}\necho "$@"\n')
    rank.chmod(0o755)
    command = [str(ROOT / "launchers/local.sh"), "-n", "2", "some.toml", "--set", "seed=1"]
    env = environment(ADRPO_PYTHON=str(rank), OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert (
        lines[2:] == ["0/2 0/2 127.0.0.1 1", "1/2 1/2 127.0.0.1 1"]
        or lines[:2] == ["-m adrpo_scale train some.toml --set seed=1"] * 2
    )
    assert len(lines) == 4


@pytest.mark.parametrize("name", JOBS)
def test_the_script_names_what_it_asks_slurm_for(name):
    """Settings without which a job is lost: its log, its requeue, its signal."""
    options = re.findall(r"^#SBATCH (\S+)", (ROOT / f"slurm/{name}.sbatch").read_text(), re.M)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@300"} <= set(options)
    fixed = ("--ntasks", "--partition", "--time", *(() if name == "prepare" else ("--nodes",)))
    assert not [option for option in options if option.startswith(fixed)]
