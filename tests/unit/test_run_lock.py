"""One writer per run folder, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from adrpo_scale.errors import RunFolderError
from adrpo_scale.run_lock import LOCK, Owner, RunLock, parse_owner

HOLD = """
import sys, time
from pathlib import Path
from adrpo_scale.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from adrpo_scale.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]), 60, 10)
sys.stdin.readline()
try:
    lock.acquire()
    lock.check()
    print("won", flush=True)
    sys.stdin.readline()
except Exception as error:
    print("refused", flush=True)
"""


def holder(run, expiry=60.0, beat=10.0):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run), str(expiry), str(beat)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def owner_of(run):
    return parse_owner((run / LOCK).read_bytes())


def foreign(run, **facts):
    """A lock of another machine, with a heartbeat right now."""
    facts = {"token": "theirs", "host": "node17", "machine": "another", "pid": 1} | facts
    (run / LOCK).write_text(json.dumps(facts))


def test_a_lock_is_held_checked_and_released(tmp_path):
    with RunLock(tmp_path) as lock:
        lock.check()
        assert owner_of(tmp_path).pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_here_is_refused_at_once_and_a_killed_one_taken_over(tmp_path):
    process = holder(tmp_path)
    begin = time.monotonic()
    with pytest.raises(RunFolderError, match=rf"in use by host .*, process {process.pid}"):
        RunLock(tmp_path).acquire()
    process.kill()
    RunLock(tmp_path).acquire()  # not yet waited for: a zombie holds nothing
    assert time.monotonic() - begin < 5
    process.wait()


def test_another_machine_is_watched_until_it_shows_a_heartbeat_or_expires(tmp_path):
    foreign(tmp_path)
    beating = subprocess.Popen(["sh", "-c", f"sleep .4; touch {tmp_path / LOCK}"])
    with pytest.raises(RunFolderError, match="in use by host node17"):
        RunLock(tmp_path, 2.0, 0.2).acquire()
    beating.wait()
    begin = time.monotonic()
    RunLock(tmp_path, 1.0, 0.2).acquire()
    assert 0.5 < time.monotonic() - begin < 3


def test_a_requeued_job_takes_over_its_own_lock_at_once(tmp_path, monkeypatch):
    foreign(tmp_path, job_id="5", restart_count="0")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    begin = time.monotonic()
    with pytest.raises(RunFolderError):  # the same life of the same job: perhaps a second srun
        lock = RunLock(tmp_path, 30, 5)
        subprocess.Popen(["sh", "-c", f"sleep .3; touch {tmp_path / LOCK}"])
        lock.acquire()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    RunLock(tmp_path, 30, 5).acquire()
    assert time.monotonic() - begin < 6


def test_nothing_is_known_of_an_unreadable_lock_so_it_must_expire(tmp_path):
    (tmp_path / LOCK).write_text("{")
    assert owner_of(tmp_path) == Owner()
    os.utime(tmp_path / LOCK, (1, 1))
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("attempt", range(3))
def test_of_eight_that_find_a_dead_lock_one_gets_it(tmp_path, attempt):
    foreign(tmp_path)
    os.utime(tmp_path / LOCK, (1, 1))
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, **pipes) for _ in range(8)]
    time.sleep(0.5)
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    answers = [racer.stdout.readline().strip() for racer in racers]
    assert sorted(answers) == ["refused"] * 7 + ["won"]
    for racer in racers:
        racer.kill()
        racer.wait()


def test_an_owner_that_slept_too_long_finds_out_and_leaves_the_new_ones_lock_alone(tmp_path):
    lock = RunLock(tmp_path, 60, 10)
    lock.acquire()
    (tmp_path / LOCK).write_text(json.dumps({"token": "theirs", "host": "node9"}))
    with pytest.raises(RunFolderError, match=r"taken over by another process \(host node9"):
        lock.check()
    lock.release()
    assert owner_of(tmp_path).token == "theirs"


def test_a_process_that_is_stopped_loses_its_lock_by_silence(tmp_path):
    process = holder(tmp_path, 1.0, 0.2)
    process.send_signal(signal.SIGSTOP)
    lock = tmp_path / LOCK
    facts = json.loads(lock.read_text()) | {"machine": "another"}  # as another node sees it
    modified = lock.stat().st_mtime
    lock.write_text(json.dumps(facts))
    os.utime(lock, (modified, modified))
    RunLock(tmp_path, 1.0, 0.2).acquire()
    process.kill()
    process.wait()
