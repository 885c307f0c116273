"""The process that draws rollouts: how it starts, fails, is waited for, and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch

from adrpo_scale.core.errors import GenerationError, exit_code
from adrpo_scale.core.watchdog import Watchdog
from adrpo_scale.domains.generation.channel import Channel
from adrpo_scale.domains.generation.environment import clean_environment, visible_device
from adrpo_scale.domains.generation.process import GenerationProcess
from adrpo_scale.domains.generation.server import _kind
from adrpo_scale.domains.generation.weight_files import tensors_in, weight_files
from tests.support import odd_generators
from tests.support.ranks import forkserver
from tests.support.waiting import wait_until

ROOT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def tests_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)


def started(how, **settings):
    path = f"{odd_generators.HERE}:Odd"
    return GenerationProcess("the odd one", path, {"how": how, **settings})


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# ---- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [True, False])
def test_an_exception_is_told_with_the_last_lines(at_once):
    with pytest.raises(GenerationError) as caught:
        started("raises", at_once=at_once).rest()
    text = str(caught.value)
    assert re.match(r"the odd one, process \d+ beside this rank, has failed: ValueError: no", text)
    assert "\n  | a line of a library\n" in text and text.endswith(
        "  | ValueError: no room for the cache"
    )
    assert exit_code(caught.value) == 2  # another start would end alike


@pytest.mark.parametrize(
    ("how", "what", "code"),
    [("dies", "was ended by SIGKILL", 86), ("talks", "has ended with exit code 7", 2)],
)
def test_an_end_is_told_with_its_code(how, what, code):
    process = started(how)
    with pytest.raises(GenerationError, match=what) as caught:
        process.rest()
    assert exit_code(caught.value) == code
    if how == "talks":
        *_, before, last = str(caught.value).splitlines()
        assert last == "  | \\x1b[2Jthe last" and before == "  | " + "x" * 400
        assert str(caught.value).count("| old") == 18
    assert not is_there(process.process.pid)


def test_a_hang_is_an_error_before_the_watchdog_ends_the_run(tmp_path):
    process = started("hangs")
    with Watchdog(tmp_path, 0, 1.0), pytest.raises(GenerationError) as caught:
        process.rest()
    assert "has not answered for 1 s (limits.hang_seconds" in str(caught.value)
    assert exit_code(caught.value) == 86
    assert not is_there(process.process.pid)


def test_what_the_trainer_must_know_of_an_error_it_does_not_see():
    assert _kind(torch.OutOfMemoryError("CUDA out of memory")) == {"memory": True, "lost": False}
    gone = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    assert _kind(gone) == {"memory": False, "lost": True}
    process = started("nothing")
    told = process._failed(
        {"failed": "OutOfMemoryError: CUDA out of memory. 2 GiB", "memory": True}
    )
    assert isinstance(told, torch.OutOfMemoryError) and "out of memory in the odd one" in str(told)
    lost = process._failed({"failed": "AcceleratorError: CUDA error", "lost": True})
    assert exit_code(lost) == 86


# ---- signals, environment, end -------------------------------------------------------------------


def test_signals_that_stop_a_run_do_not_reach_it():
    process = started("starts_another")
    process.rest()
    wait_until(lambda: process._said, "the pid of what it has started")
    pids = (process.process.pid, int(process._said[-1]))
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        for pid in pids:
            os.kill(pid, number)
    process.rest()
    assert all(map(is_there, pids))
    process.close()
    assert not is_there(pids[0])
    wait_until(lambda: not is_there(pids[1]), "the end of what it has started")


def test_no_launcher_and_no_neighbour_is_seen(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-5f,6")
    monkeypatch.setenv("KEPT", "1")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "SLURM_PROCID"):
        monkeypatch.setenv(name, "3")
    path = f"{odd_generators.HERE}:Odd"
    with pytest.raises(GenerationError) as caught:
        GenerationProcess("odd", path, {"how": "tells", "at_once": True}, 1, sys.executable)
    # An interpreter of its own gets no PYTHONPATH, so it does not find the tests.
    assert "No module named 'tests'" in str(caught.value)
    with pytest.raises(GenerationError) as caught:
        GenerationProcess("odd", path, {"how": "tells", "at_once": True}, 1)
    told = str(caught.value).partition("RuntimeError: ")[2].partition("; its last")[0]
    variables, path = json.loads(told)
    assert variables == {"CUDA_VISIBLE_DEVICES": "GPU-5f", "KEPT": "1"}
    assert "" not in path and os.getcwd() not in set(path) - {ROOT}


def test_a_rank_without_a_gpu_shows_none():
    env = {"CUDA_VISIBLE_DEVICES": "0", "LOCAL_RANK": "1", "PYTORCH_ALLOC_CONF": "x", "A": "b"}
    assert clean_environment(None, True, env) == {"A": "b", "CUDA_VISIBLE_DEVICES": ""}
    assert visible_device(3, {}) == "3"


def _trainer(folder):
    os.environ["PYTHONPATH"] = ROOT  # The forkserver may have started without it.
    process = started("hangs")
    Path(folder, "new").write_text(f"{os.getpid()} {process.process.pid}")
    Path(folder, "new").rename(Path(folder, "pids"))
    process.rest()


def test_it_ends_with_a_trainer_that_is_killed(tmp_path):
    trainer = forkserver().Process(target=_trainer, args=(str(tmp_path),))
    trainer.start()
    wait_until((tmp_path / "pids").exists, "the start")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert pids[0] == trainer.pid and is_there(pids[1])
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join()
    wait_until(lambda: not is_there(pids[1]), "the end of the process beside it")


# ---- messages and weights ------------------------------------------------------------------------


def test_messages_arrive_as_they_were_sent():
    one, two = (Channel(end) for end in socket.socketpair())
    with one.socket, two.socket:
        read, write = os.pipe()
        content = {"do": "load", "seed": 2**63 - 1, "text": "ä\n"}
        one.send(content, b"\0" * 1000, [write])
        one.send({})
        found = two.receive()
        assert (found.content, found.payload) == (content, b"\0" * 1000)
        assert two.receive().content == {}
        os.write(found.files[0], b"here")
        assert os.read(read, 10) == b"here"
        for descriptor in (read, write, *found.files):
            os.close(descriptor)
        one.socket.sendall(b"half")
        one.socket.close()
        with pytest.raises(EOFError, match="inside a message"):
            two.receive()


@pytest.mark.parametrize("is_shared", [True, False])
def test_weights_travel_in_small_files_without_a_name(monkeypatch, is_shared):
    if not is_shared:
        monkeypatch.delattr(os, "memfd_create")
    weights = {
        "a": torch.randn(10, 3),
        "scale": torch.tensor(2.5),
        "large": torch.randn(64, 64).bfloat16(),
        "turned": torch.randn(4, 5).T,
        "none": torch.empty(0, 4),
    }
    before = len(os.listdir("/proc/self/fd"))
    found, sizes = {}, []
    for descriptor in weight_files(weights.items(), file_bytes=200):
        assert "(deleted)" in os.readlink(f"/proc/self/fd/{descriptor}")
        sizes.append(os.fstat(descriptor).st_size)
        found |= dict(tensors_in(descriptor))
    assert len(sizes) == 3 and max(sizes) < 64 * 64 * 2 + 200
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    del found
    assert len(os.listdir("/proc/self/fd")) == before
