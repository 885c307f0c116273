"""The preflight of several processes: nodes that stay away, see no run folder, or are not like the
others. "Nodes" are processes here; a mount namespace gives one another view of the folders."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adrpo_scale.cluster.preflight import bandwidth, run, survey
from adrpo_scale.cluster.preflight.run import PreflightOptions, preflight
from tests.support.ranks import run_ranks
from tests.support.tiny import CONFIGS
from tests.support.waiting import wait_until

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
_CLONE_NEWNS = 0x00020000


def one_process(rank, world, per_node, folder, changes, options):
    """(exit code, rank 0's JSON). changes: rank → what it does first; None: it does not come."""
    local = {"LOCAL_RANK": str(rank % per_node), "LOCAL_WORLD_SIZE": str(per_node)}
    names = ",".join(f"n{k}" for k in range(world // per_node))
    os.environ.update(local, ADRPO_NODES=names, ADRPO_BAD_NODES=f"{folder}/../bad")
    change = changes.get(rank, nothing)
    if change is None:
        return None
    change(folder)
    # A config by which a run's checkpoints fit into any disk of these tests.
    given = {"run_dir": folder / "runs" / "x", "as_json": True} | options
    with contextlib.redirect_stdout(io.StringIO()) as stated:
        code = preflight(PreflightOptions(IMAGE, **given))
    return code, json.loads(stated.getvalue() or "null")


def start(tmp_path, world, per_node=1, changes=None, timeout=240, **options):
    """(exit codes, rank 0's JSON, the bad nodes as they were written down)"""
    folder = tmp_path / "shared"
    (folder / "runs").mkdir(parents=True)
    ranks = run_ranks(one_process, world, per_node, folder, changes or {}, options, timeout=timeout)
    assert list((folder / "runs").iterdir()) == []
    file = tmp_path / "bad"
    bad = file.read_text().split() if file.exists() else []
    return [found and found[0] for found in ranks], ranks[0][1], bad


def faults(stated):
    return {check["name"]: check for check in stated["checks"] if check["state"] == "fault"}


def nothing(folder):
    pass


def own_namespace():
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNS):
        raise PermissionError("a mount namespace is not permitted here")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def see_no_folder(folder):
    own_namespace()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)


def see_it_read_only(folder):
    own_namespace()
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)


def have_another_torch(folder):
    """As a node whose environment was not updated."""
    info = folder.parent / "site" / "torch-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9\n")
    sys.path.insert(0, str(info.parent))


def have_a_late_clock(folder):
    now = time.time
    survey.time.time = run.time.time = lambda: now() - 1000


def have_no_interface(folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "none"


def hurry(folder):
    bandwidth.SECONDS = 8.0


@pytest.fixture
def namespaces():
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    if done.returncode:
        pytest.skip("mount namespaces are not permitted here")


def test_two_nodes_of_two_processes_are_fit(tmp_path):
    codes, stated, bad = start(tmp_path, 4, per_node=2)
    assert codes == [0, 0, 0, 0]
    assert faults(stated) == {}
    sums = [check["stated"] for check in stated["checks"] if check["name"] == "all-reduce"]
    assert [text.split(":")[0] for text in sums] == [
        "within each node",
        "between neighbours",
        "all processes",
    ]
    assert "2 nodes see it" in stated["checks"][1]["stated"]
    assert bad == []


def test_a_node_that_does_not_come_is_named(tmp_path):
    codes, stated, bad = start(
        tmp_path, 6, per_node=2, changes={2: None, 3: None, 5: None}, seconds=3
    )
    assert codes == [4, 4, None, None, 4, None]
    findings = faults(stated)["nodes"]["findings"]
    assert [finding["value"] for finding in findings] == [
        "did not answer within 3 s",
        "rank 5 did not answer within 3 s",
    ]
    assert bad == stated["bad_nodes"] == ["n1", "n2"]
    assert len(stated["checks"]) == 1


def test_every_node_that_is_not_like_the_others_is_named_at_once(tmp_path, namespaces):
    changes = {1: see_no_folder, 2: see_it_read_only, 3: have_another_torch, 4: have_a_late_clock}
    codes, stated, bad = start(tmp_path, 7, changes=changes)
    assert codes == [4] * 7
    assert sorted(bad) == sorted(stated["bad_nodes"]) == ["n1", "n2", "n3"]
    found = faults(stated)
    assert found.keys() == {"folder", "versions"}
    unseen, read_only = found["folder"]["findings"]
    assert unseen["nodes"] == ["n1"] and "there is no such folder" in unseen["value"]
    assert read_only["nodes"] == ["n2"] and "Read-only" in read_only["value"]
    (versions,) = found["versions"]["findings"]
    assert versions["nodes"] == ["n3"] and "torch: 9.9 on n3" in versions["value"]
    (clocks,) = [check for check in stated["checks"] if check["name"] == "clocks"]
    assert clocks["findings"][0]["nodes"] == ["n4"]
    assert "behind" in clocks["findings"][0]["value"]


def test_a_node_that_the_others_cannot_talk_to_is_named(tmp_path):
    changes = {0: hurry, 2: have_no_interface}
    codes, stated, bad = start(tmp_path, 4, changes=changes)
    assert codes == [4] * 4
    assert bad == ["n2"]
    # On a loaded machine a healthy pair may also be slower than half of the median: a warning.
    findings = faults(stated)["all-reduce"]["findings"]
    (finding,) = [one for one in findings if one["severity"] == "fault"]
    assert "gloo all-reduce with its neighbours: rank 2" in finding["value"]
    assert "GLOO_SOCKET_IFNAME" in finding["remedy"]


def test_a_config_that_is_wrong_ends_all_with_its_code(tmp_path):
    ended = run_ranks(one_wrong_config, 3)
    assert ended == ["x: unknown key", 2, 2]


def one_wrong_config(rank, world):
    try:
        return preflight(PreflightOptions(IMAGE, ["x=1"]))
    except Exception as error:
        return str(error).partition(";")[0]


def command(rank, world, port):
    environment = {
        "RANK": rank,
        "WORLD_SIZE": world,
        "LOCAL_RANK": 0,
        "LOCAL_WORLD_SIZE": 1,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "ADRPO_NODES": "n0,n1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    return os.environ | {name: str(value) for name, value in environment.items()}


@pytest.mark.slow  # two starts of the command, with all of its imports
def test_the_command_and_a_stop_in_its_middle(tmp_path, namespaces):
    """The real command on two nodes, of which one does not see the folder and looks for seconds:
    meanwhile Slurm stops the job. The exit code asks for a requeue, and nothing is left behind."""
    folder = tmp_path / "shared"
    folder.mkdir()
    preflighting = [sys.executable, "-m", "adrpo_scale", "preflight", str(IMAGE)]
    preflighting += ["--run-dir", str(folder / "runs" / "x"), "--seconds", "60"]
    blind = f"mount -t tmpfs tmpfs {folder} && exec " + " ".join(preflighting)
    port = 20000 + os.getpid() % 20000
    first = subprocess.Popen(preflighting, env=command(0, 2, port), cwd=CONFIGS.parent)
    second = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", blind], env=command(1, 2, port), cwd=CONFIGS.parent
    )
    try:
        wait_until(lambda: list(folder.iterdir()), "a survey's folder")
        assert [path.name[:16] for path in folder.iterdir()] == [".adrpo-preflight"]
        first.send_signal(signal.SIGUSR1)
        assert (first.wait(120), second.wait(120)) == (85, 85)
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    assert list(Path(folder).iterdir()) == []


def test_a_process_that_cannot_reach_rank_0_says_so(tmp_path):
    ended = run_ranks(one_that_waits_in_vain, 2)
    assert ended[1].startswith("NodeError")
    assert "n1 (rank 1 of 2) cannot reach rank 0" in ended[1]
    assert "no-such-host" in ended[1] and "does not resolve" in ended[1]


def one_that_waits_in_vain(rank, world):
    os.environ.update(MASTER_ADDR="no-such-host", LOCAL_WORLD_SIZE="1", LOCAL_RANK="0")
    os.environ.update(ADRPO_NODES="n0,n1")
    if rank == 0:
        return None
    try:
        preflight(PreflightOptions(IMAGE, seconds=-9))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
