"""The command `doctor`: what it finds on machines that differ in one thing each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli.main import app
from adrpo_scale.cluster.doctor import gpus, machine
from adrpo_scale.cluster.doctor.examine import check_errors, check_run
from adrpo_scale.cluster.doctor.gpus import Gpus, check_driver, check_each, check_pairs, newest_cuda
from adrpo_scale.cluster.preflight.node import CudaFacts, GpuFacts
from adrpo_scale.core import secrets
from adrpo_scale.run.starts import environment

FINE = CudaFacts(True, 2, "", "13.0", "580.82.07", 2)
GPU = GpuFacts(0, "NVIDIA RTX A6000", 48 * 2**30, 10**9, ())


def only(check):
    (finding,) = check.findings
    return finding


def test_it_ends_well_here_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    found = CliRunner().invoke(app, ["doctor", "--json"])
    checks = {check["name"]: check for check in json.loads(found.stdout)}
    assert found.exit_code == 0, checks
    assert {"python", "versions", "driver", "network", "runs", "variables"} <= checks.keys()
    assert list(tmp_path.iterdir()) == []
    text = CliRunner().invoke(app, ["doctor"]).stdout
    assert text.startswith("✓ python") and f"ADRPO_RUNS={tmp_path}" in text


@pytest.mark.parametrize(
    ("driver", "wheel", "remedy"),
    [
        ("535.104.05", "13.2", "install a torch built for CUDA 12"),
        ("470.57", "12.8", "install a newer driver"),
        ("580.82.07", "13.2", "nvidia-smi"),
        ("580.82.07", None, "install a torch built for CUDA 13"),
    ],
)
def test_a_driver_that_the_wheel_does_not_fit_names_the_wheel(driver, wheel, remedy):
    finding = only(check_driver(CudaFacts(False, 0, "too old", wheel, driver, 1)))
    assert finding.severity == "fault" and remedy in finding.remedy
    assert driver in finding.value and "too old" in finding.value


def test_a_driver_is_missed_only_where_a_gpu_was_granted():
    assert check_driver(CudaFacts(False, 0, "", "13.2", None, 0)).state == "fine"
    assert "srun --gpus=1" in only(check_driver(CudaFacts(False, 0, "", "13.2", None, 4))).remedy
    assert check_driver(FINE).state == "fine"
    assert newest_cuda("525.60.13") == "12" and newest_cuda("525.60.12") is None


def test_gpus_are_named_one_by_one_and_in_pairs():
    broken = GpuFacts(1, error="uncorrectable ECC error")
    found = Gpus(FINE, (GPU, broken), ((0, 1),), "2.30.7")
    assert "uncorrectable ECC error" in only(check_each(found)).value
    assert "0–1" in only(check_pairs(found)).value and check_pairs(found).state == "warning"
    whole = Gpus(FINE, (GPU, GpuFacts(1, "NVIDIA RTX A6000", 48 * 2**30, 0, ())), (), "2.30.7")
    assert check_each(whole).state == check_pairs(whole).state == "fine"
    assert [check.name for check in gpus.checks(whole)] == ["driver", "gpus", "peers", "nccl"]


def test_packages_that_are_missing_are_named():
    here = environment()
    assert machine.check_versions(here).state == "fine"
    without = {**here, "versions": here["versions"] | {"peft": None, "deepspeed": None}}
    assert only(machine.check_versions(without)).value == "peft, deepspeed not installed"


def test_a_variable_must_name_an_interface_that_is_there(monkeypatch):
    monkeypatch.setattr(machine, "interfaces", lambda: iter([("eth0", "up at 100 Gb/s")]))
    for value in ("eth0", "=eth0", "eth", "^docker0", "ib0,eth0", ""):
        assert machine.check_network({"NCCL_SOCKET_IFNAME": value}).state == "fine", value
    finding = only(machine.check_network({"GLOO_SOCKET_IFNAME": "ib0"}))
    assert "GLOO_SOCKET_IFNAME=ib0" in finding.value and "eth0 up" in finding.expectation


def test_a_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path):
    check = machine.check_folder("runs", tmp_path / "not" / "yet")
    assert check.state == "fine" and str(tmp_path / "not" / "yet") in check.stated
    assert list(tmp_path.iterdir()) == []


def test_a_filesystem_without_hard_links_is_found(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(machine.os, "link", refused)
    assert "Operation not permitted" in only(machine.check_folder("runs", tmp_path)).value


def test_the_filesystem_is_that_of_the_innermost_mount(tmp_path):
    mounts = tmp_path / "mounts"
    lines = [
        "/dev/a / ext4 rw 0 0",
        "server:/x /my\\040home nfs4 rw 0 0",
        "b /my\\040home/s xfs 0 0",
    ]
    mounts.write_text("\n".join(lines) + "\n")
    kinds = [machine.filesystem_of(Path(p), mounts) for p in ("/tmp", "/my home/a", "/my home/s/b")]
    assert kinds == ["ext4", "nfs4", "xfs"]
    assert machine.filesystem_of(Path("/"), tmp_path / "none") == "?"


def test_keys_are_set_and_never_shown(monkeypatch):
    env = {"HF_TOKEN": "hf_abcdefgh1234", "ADRPO_API_KEY": "sk-12345678", "NCCL_DEBUG": "INFO"}
    stated = machine.check_variables(env | {"HOME": "/home/me"}).stated
    assert stated == "ADRPO_API_KEY=set HF_TOKEN=set NCCL_DEBUG=INFO"
    assert "token set" in machine.check_offline(env).stated
    assert "HF_HUB_OFFLINE set" in machine.check_offline({"HF_HUB_OFFLINE": "1"}).stated


def test_the_last_errors_of_a_run_are_shown_without_keys(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "_forms", [])
    monkeypatch.setattr(secrets, "_bare", [])
    secrets.keep("sk-very-secret-123")
    run = tmp_path / "run"
    (run / "lives").mkdir(parents=True)
    (run / "logs").mkdir()
    (run / "lives" / "01.json").write_text('{"world_size": 8, "exit_code": 1, "outcome": "failed"}')
    lines = [f"iteration {n}" for n in range(50)] + ["RewardError: key sk-very-secret-123 refused"]
    (run / "logs" / "rank-003.log").write_text("\n".join(lines) + "\n")
    stated = check_run(run).stated
    assert "world_size 8" in stated and "outcome failed" in stated
    assert only(check_errors(run)).value == "rank-003.log: RewardError: key *** refused"
    found = CliRunner().invoke(app, ["doctor", "--run", str(run)])
    assert found.exit_code == 0 and "RewardError: key *** refused" in found.stdout
    assert "world_size 8" in found.stdout
    assert "sk-very-secret" not in found.stdout
    wrong = CliRunner().invoke(app, ["doctor", "--run", str(tmp_path)])
    assert "expected a run folder" in str(wrong.exception)
