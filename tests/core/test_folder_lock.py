"""One writer per run folder: who is refused, who takes over, and when. Real processes and files."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.folder_lock import LOCK, RunLock
from adrpo_scale.core.lock_owner import parse_owner, this_process
from tests.support.waiting import wait_until

EXPIRY, BEAT = 0.4, 0.1
LONG = 60.0  # an expiry that no test waits for
RACES, RACERS = 5, 8

# Does what it is told, line by line, and answers each line with one. SLOW: every file operation
# takes a while, as on a file server; without it the races below are over before they begin.
WRITER = """
import os, random, sys, time
from pathlib import Path
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.folder_lock import RunLock

def slow(real):
    def later(*arguments, **more):
        time.sleep(random.random() * 0.003)
        return real(*arguments, **more)

    return later

if "SLOW" in os.environ:
    for name in ("open", "link", "rename", "unlink", "utime", "stat"):
        setattr(os, name, slow(getattr(os, name)))

for line in sys.stdin:
    order, *arguments = line.split()
    if order == "acquire":
        run, expiry, beat = arguments
        lock = RunLock(Path(run), float(expiry), float(beat))
    try:
        getattr(lock, order)()
        print("done", flush=True)
    except RunFolderError as error:
        print(error, flush=True)
"""


class Writer:
    """A process of its own that takes a lock when it is told to."""

    def __init__(self, **variables):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # what it logs
            text=True,
            bufsize=1,
            cwd=Path(__file__).parents[2],
            env=without_slurm() | variables,
        )

    def tell(self, *order):
        self.process.stdin.write(" ".join(map(str, order)) + "\n")

    def answer(self):
        return self.process.stdout.readline().strip()

    def ask(self, *order):
        self.tell(*order)
        return self.answer()

    def acquire(self, run, expiry=LONG, beat=BEAT):
        return self.ask("acquire", run, expiry, beat)


@pytest.fixture
def writer():
    """A function that starts a Writer; all of them end with the test."""
    started = []

    def start(**variables):
        started.append(Writer(**variables))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    for name in set(os.environ) - set(without_slurm()):
        monkeypatch.delenv(name)


def without_slurm():
    return {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}


@contextmanager
def heartbeats(lock):
    """Somebody else keeps the lock alive."""
    over = threading.Event()

    def beat():
        while not over.wait(BEAT):
            with suppress(FileNotFoundError):
                os.utime(lock)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def somebody(**facts):
    """An owner on a machine that is not this one."""
    there = {"host": "a6000-03", "machine": "another boot", "pid": 77, "heartbeat_seconds": BEAT}
    return replace(this_process(BEAT), **(there | facts))


def leave_lock(run, owner, age=0.0):
    """A lock whose last heartbeat is `age` seconds old. owner: bytes for what is no owner."""
    content = owner if isinstance(owner, bytes) else json.dumps(asdict(owner)).encode()
    (run / LOCK).write_bytes(content)
    if age:
        os.utime(run / LOCK, (time.time() - age,) * 2)


def seconds_to_replace(run, owner, expiry=LONG, age=0.0):
    """How long it took to get the lock of `owner`, from the moment it was left; it is released."""
    begin = time.monotonic()
    leave_lock(run, owner, age)
    with RunLock(run, expiry, BEAT) as lock:
        took = time.monotonic() - begin
        lock.check()
    assert list(run.iterdir()) == []
    return took


@contextmanager
def mounted(folder, options="size=64k"):
    """A small disk of its own at `folder`."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_lock_says_who_holds_it_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    with RunLock(tmp_path, EXPIRY, BEAT):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        owner = parse_owner((tmp_path / LOCK).read_bytes())
        assert (owner.pid, owner.job_id, owner.restart_count) == (os.getpid(), "4711", "2")
    assert list(tmp_path.iterdir()) == []


def test_heartbeat_moves_the_lock_s_time_and_nothing_else(tmp_path):
    with RunLock(tmp_path, EXPIRY, BEAT):
        before, content = (tmp_path / LOCK).stat().st_mtime, (tmp_path / LOCK).read_bytes()
        wait_until(lambda: (tmp_path / LOCK).stat().st_mtime > before, "a heartbeat")
        assert (tmp_path / LOCK).read_bytes() == content


def test_second_writer_is_refused_with_a_remedy_and_the_first_keeps_the_lock(tmp_path, writer):
    first, second = writer(SLURM_JOB_ID="4711"), writer(SLURM_JOB_ID="4712")
    assert first.acquire(tmp_path, beat=15.0) == "done"
    begin = time.monotonic()
    message = second.acquire(tmp_path, beat=15.0)
    assert time.monotonic() - begin < 7  # this machine's process table need not be watched
    for part in (
        "in use by job 4711, host",
        f"process {first.process.pid}",
        "scancel 4711",
        "--run-dir",
    ):
        assert part in message
    assert first.ask("check") == "done"
    assert first.ask("release") == "done"
    assert second.acquire(tmp_path) == "done"


def test_owner_on_another_machine_is_watched_and_its_next_heartbeat_refuses_us(tmp_path):
    leave_lock(tmp_path, somebody())
    message = r"host a6000-03, process 77.*kill 77 on a6000-03"
    with heartbeats(tmp_path / LOCK), pytest.raises(RunFolderError, match=message):
        RunLock(tmp_path, LONG, BEAT).acquire()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_lock_that_disappears_while_it_is_watched_is_taken(tmp_path):
    leave_lock(tmp_path, somebody())
    threading.Timer(2 * BEAT, (tmp_path / LOCK).unlink).start()
    begin = time.monotonic()
    with RunLock(tmp_path, LONG, BEAT):
        assert time.monotonic() - begin < LONG / 2


def test_killed_owner_on_this_machine_is_replaced_at_once(tmp_path, writer):
    dead = writer()
    assert dead.acquire(tmp_path) == "done"
    dead.process.kill()
    # Dead, and not collected: a zombie still has a line in the process table.
    os.waitid(os.P_PID, dead.process.pid, os.WEXITED | os.WNOWAIT)
    begin = time.monotonic()
    with RunLock(tmp_path, LONG, BEAT):
        assert time.monotonic() - begin < LONG / 2
    dead.process.wait()
    here = this_process(BEAT).machine
    assert seconds_to_replace(tmp_path, somebody(pid=dead.process.pid, machine=here)) < LONG / 2


def test_owner_whose_process_id_went_to_another_process_is_replaced_at_once(tmp_path):
    mine = this_process(BEAT)
    earlier = replace(mine, process_start=mine.process_start - 1)
    assert seconds_to_replace(tmp_path, earlier) < LONG / 2


def test_silent_owner_on_another_machine_is_replaced_after_its_expiry_and_not_before(tmp_path):
    assert EXPIRY - 0.02 < seconds_to_replace(tmp_path, somebody(), EXPIRY) < LONG / 2
    assert seconds_to_replace(tmp_path, somebody(), age=LONG + 0.1) < LONG / 2


def test_owner_that_beats_seldom_by_its_own_settings_is_not_dead_by_ours(tmp_path):
    seldom = somebody(heartbeat_seconds=0.3)
    assert 0.25 < seconds_to_replace(tmp_path, seldom, EXPIRY, age=0.6) < LONG / 2


def test_silence_is_found_out_also_where_the_lock_s_time_lies_in_the_future(tmp_path):
    assert EXPIRY - 0.02 < seconds_to_replace(tmp_path, somebody(), EXPIRY, age=-3600.0) < LONG / 2


@pytest.mark.parametrize(
    "owner, at_once",
    [
        ({"job_id": "4711", "restart_count": "0"}, True),
        ({"job_id": "4711", "restart_count": "1"}, False),  # this very start, on another node
        ({"job_id": "4711", "restart_count": "2"}, False),  # a later one: we are the left-over
        ({"job_id": "4712", "restart_count": "0"}, False),
        ({"job_id": "4711", "restart_count": "0", "cluster": "another"}, False),
        ({"job_id": None}, False),
    ],
)
def test_requeued_job_replaces_its_earlier_start_at_once(tmp_path, monkeypatch, owner, at_once):
    expiry = LONG if at_once else 0.2
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    took = seconds_to_replace(tmp_path, somebody(**owner), expiry)
    assert took < LONG / 2 if at_once else took > 0.18


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"\xff\xfe", b'{"token": "x"}'],
    ids=["empty", "cut", "null", "bytes", "partial"],
)
def test_lock_that_says_nothing_readable_is_replaced_after_the_expiry(tmp_path, content):
    assert 0.18 < seconds_to_replace(tmp_path, content, 0.2) < LONG / 2


def test_lock_that_says_nothing_readable_but_is_kept_alive_refuses(tmp_path):
    leave_lock(tmp_path, b"{")
    with heartbeats(tmp_path / LOCK), pytest.raises(RunFolderError, match="an unknown process"):
        RunLock(tmp_path, LONG, BEAT).acquire()


@pytest.mark.parametrize("pid", [0, -1, 2**40, "1", None])
def test_process_id_that_is_none_is_not_asked_about(tmp_path, pid):
    owner = somebody(pid=pid, machine=this_process(BEAT).machine)
    assert 0.18 < seconds_to_replace(tmp_path, owner, 0.2) < LONG / 2


def test_of_many_processes_at_one_dead_lock_exactly_one_wins(tmp_path, writer):
    racers = [writer(SLOW="1") for _ in range(RACERS)]
    for race in range(RACES):
        run = tmp_path / str(race)
        run.mkdir()
        leave_lock(run, somebody(), age=3600.0)
        for racer in racers:
            racer.tell("acquire", run, LONG, BEAT)
        answers = [racer.answer() for racer in racers]
        winners = [racer for racer, answer in zip(racers, answers, strict=True) if answer == "done"]
        assert len(winners) == 1
        assert sum("is in use by" in answer for answer in answers) == RACERS - 1
        assert winners[0].ask("check") == "done"
        assert winners[0].ask("release") == "done"
        assert list(run.iterdir()) == []


def test_suspended_owner_loses_the_lock_and_finds_out_before_it_commits(tmp_path, writer):
    first, second = writer(), writer()
    assert first.acquire(tmp_path, EXPIRY) == "done"
    first.process.send_signal(signal.SIGSTOP)
    assert second.acquire(tmp_path, EXPIRY) == "done"
    first.process.send_signal(signal.SIGCONT)
    assert f"taken over by another process (host {os.uname().nodename}" in first.ask("check")
    time.sleep(2 * BEAT)  # its heartbeat wakes up too; later, it could harm no less
    assert first.ask("release") == "done"
    assert second.ask("check") == "done"


def test_lock_that_somebody_deleted_stops_its_owner(tmp_path):
    with RunLock(tmp_path, EXPIRY, BEAT) as lock:
        (tmp_path / LOCK).unlink()
        with pytest.raises(RunFolderError, match="somebody deleted it"):
            lock.check()


def test_what_the_heartbeat_has_lost_stays_lost(tmp_path):
    """Also where the next owner has gone again, and the file is as it was."""
    with RunLock(tmp_path, LONG, BEAT) as lock:
        ours = (tmp_path / LOCK).read_bytes()
        (tmp_path / LOCK).write_text(json.dumps({"token": "x"}))
        wait_until(lambda: not lock._thread.is_alive(), "the end of the heartbeat")
        (tmp_path / LOCK).write_bytes(ours)
        with pytest.raises(RunFolderError, match="taken over"):
            lock.check()


def test_another_rank_of_the_owner_checks_too(tmp_path):
    with RunLock(tmp_path, LONG, BEAT) as lock:
        other = RunLock(tmp_path)
        other.join((tmp_path / LOCK).read_bytes())
        other.check()
        other.release()  # not its own
        lock.check()
        (tmp_path / LOCK).write_text(json.dumps({"token": "x"}))
        with pytest.raises(RunFolderError, match="taken over"):
            other.check()


def test_a_lock_that_cannot_be_read_ends_nothing_while_nobody_may_have_taken_it(tmp_path):
    lock, other = RunLock(tmp_path, LONG), RunLock(tmp_path, 2 * EXPIRY)
    content = lock.acquire()
    other.join(content)
    (tmp_path / LOCK).unlink()
    (tmp_path / LOCK).mkdir()  # reading it fails, as on a file server that does not answer
    lock.check()
    with pytest.raises(RunFolderError, match="cannot be read"):
        other.check()  # the attempts take longer than half of its expiry
    lock.release()


def test_heartbeat_outlives_a_time_in_which_the_file_cannot_be_reached(tmp_path):
    with RunLock(tmp_path, EXPIRY, BEAT) as lock:
        (tmp_path / LOCK).rename(tmp_path / "elsewhere")
        back = threading.Timer(3 * BEAT, (tmp_path / "elsewhere").rename, [tmp_path / LOCK])
        back.start()
        lock.check()
        back.join()
        before = (tmp_path / LOCK).stat().st_mtime
        wait_until(lambda: (tmp_path / LOCK).stat().st_mtime > before, "a heartbeat")


def test_lock_can_be_taken_again_after_its_release(tmp_path):
    lock = RunLock(tmp_path, EXPIRY, BEAT)
    for _ in range(2):
        with lock:
            lock.check()
    lock.release()  # once more does no harm


def test_killed_taker_holds_up_the_next_one_for_the_expiry_alone(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(self, expected):
        raise Killed

    leave_lock(tmp_path, somebody(), age=3600.0)
    begin = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(RunLock, "_remove", kill)
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # no time to clean up
        with pytest.raises(Killed):
            RunLock(tmp_path, EXPIRY, BEAT).acquire()
    assert len(list(tmp_path.glob("*.claim"))) == 1
    with RunLock(tmp_path, EXPIRY, BEAT):
        assert EXPIRY - 0.02 < time.monotonic() - begin < LONG / 2
    assert list(tmp_path.glob("*.claim")) == []


def test_lock_that_comes_between_look_and_removal_is_put_back(tmp_path, monkeypatch):
    rename, alive = os.rename, somebody(host="a6000-04")
    beating = ExitStack()

    def late(source, target):
        monkeypatch.setattr(os, "rename", rename)
        Path(source).unlink()
        leave_lock(tmp_path, alive)
        beating.enter_context(heartbeats(tmp_path / LOCK))
        rename(source, target)

    leave_lock(tmp_path, somebody(), age=3600.0)
    monkeypatch.setattr(os, "rename", late)
    with beating, pytest.raises(RunFolderError, match="in use by host a6000-04"):
        RunLock(tmp_path, LONG, BEAT).acquire()
    assert parse_owner((tmp_path / LOCK).read_bytes()) == alive
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_filesystem_without_hard_links_keeps_one_writer_too(tmp_path, monkeypatch):
    def no_links(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    with RunLock(tmp_path, EXPIRY, BEAT) as first:
        with pytest.raises(RunFolderError, match="in use"):
            RunLock(tmp_path, LONG, BEAT).acquire()
        first.check()
    assert seconds_to_replace(tmp_path, somebody(), age=3600.0) < LONG / 2


def test_read_only_folder_is_refused_with_a_remedy(tmp_path):
    with mounted(tmp_path / "disk") as folder:
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        with pytest.raises(RunFolderError, match=r"Read-only file system.*--run-dir"):
            RunLock(folder, EXPIRY, BEAT).acquire()


def test_full_disk_is_refused_and_half_a_lock_is_not_left_behind(tmp_path):
    with mounted(tmp_path / "disk") as folder:
        with pytest.raises(OSError), (folder / "large").open("wb") as file:
            file.write(bytes(10**6))
        with pytest.raises(RunFolderError, match=r"No space left.*Make room"):
            RunLock(folder, EXPIRY, BEAT).acquire()
        assert [path.name for path in folder.iterdir()] == ["large"]


def test_disk_that_turns_read_only_costs_warnings_and_no_traceback(tmp_path, caplog):
    with mounted(tmp_path / "disk") as folder:
        with RunLock(folder, EXPIRY, BEAT) as lock:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            time.sleep(2 * BEAT)
            lock.check()  # nobody else can have it
        assert "no heartbeat could be written" in caplog.text
        assert "could not be removed" in caplog.text


def test_folder_that_is_not_there_and_a_name_that_leads_nowhere(tmp_path):
    with pytest.raises(RunFolderError, match="No such file"):
        RunLock(tmp_path / "nowhere", EXPIRY, BEAT).acquire()
    (tmp_path / LOCK).symlink_to("nowhere")
    with pytest.raises(RunFolderError, match="link to nowhere"):
        RunLock(tmp_path, EXPIRY, BEAT).acquire()
