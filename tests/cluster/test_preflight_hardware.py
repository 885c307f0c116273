"""`preflight` on GPUs and the network, from surveys written by hand, and on this machine."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as td
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import distributed_c10d

from adrpo_scale.cluster.preflight import bandwidth, gpu_checks, network_checks, view
from adrpo_scale.cluster.preflight.bandwidth import Sums
from adrpo_scale.cluster.preflight.base import (
    Check,
    Finding,
    Place,
)
from adrpo_scale.cluster.preflight.node import (
    CudaFacts,
    FolderFacts,
    GpuFacts,
    Request,
)
from adrpo_scale.cluster.preflight.run import (
    SKIPPABLE,
    PreflightOptions,
    preflight,
    write_bad_nodes,
)
from adrpo_scale.cluster.preflight.survey import folder_facts, token_in
from adrpo_scale.core.errors import ConfigError
from tests.support.survey import CUDA, GPU, node, nodes_with, outcome
from tests.support.tiny import CONFIGS

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"


# ---- GPUs ----------------------------------------------------------------------------------------


DEAD = replace(CUDA, available=False, count=0, why="The NVIDIA driver on your system is too old")
NO_GPU = CudaFacts(wheel="13.2")


@pytest.mark.parametrize(
    "device, stated, expected",
    [
        ("auto", [CUDA, CUDA], (0, [], "fine")),
        ("cpu", [None, None], (0, [], "fine")),
        ("auto", [NO_GPU, NO_GPU], (0, [], "fine")),  # a laptop
        ("auto", [CUDA, DEAD], (4, ["n1"], "fault")),
        ("auto", [NO_GPU, CUDA, CUDA], (4, ["n0"], "fault")),
        ("auto", [DEAD, DEAD], (2, [], "fault")),  # the wheel is for another driver
        ("cuda", [NO_GPU], (2, [], "fault")),
        ("auto", [replace(NO_GPU, granted=8)], (0, [], "warning")),
        ("auto", [CUDA, replace(CUDA, count=1)], (4, ["n1"], "fault")),
        ("auto", [CUDA, replace(CUDA, count=8)], (0, [], "warning")),
    ],
)
def test_gpus_that_work(device, stated, expected):
    assert outcome(gpu_checks.check_gpus(nodes_with("cuda", stated), device)) == expected


def test_a_driver_that_is_too_old_is_named_with_what_the_wheel_needs():
    (finding,) = gpu_checks.check_gpus(nodes_with("cuda", [CUDA, DEAD]), "auto").findings
    assert "too old" in finding.value
    assert "CUDA 13.2, 580.65.06 or newer" in finding.expectation


@pytest.mark.parametrize(
    "gpu, expected, words",
    [
        (GPU, (0, [], "fine"), ""),
        (replace(GPU, used=9 << 30, users=("pid 7 python 8 GiB",)), (4, ["n1"], "fault"), "pid 7"),
        (GpuFacts(1, error="CUDA error: unspecified"), (4, ["n1"], "fault"), "GPU 1: CUDA error"),
        (replace(GPU, name="RTX 3090"), (0, [], "warning"), "RTX 3090 with 48 GiB"),
    ],
)
def test_gpus_by_themselves(gpu, expected, words):
    nodes = [node(k, gpus=[GPU, GPU if k != 1 else gpu], cuda=CUDA) for k in range(3)]
    check = gpu_checks.check_gpus(nodes, "auto")
    assert outcome(check) == expected
    assert words in "".join(finding.value for finding in check.findings)
    assert not words or check.findings[0].nodes == ("n1",)


def test_a_gpu_in_use_on_the_only_node_is_that_nodes_fault():
    busy = replace(GPU, used=40 << 30)
    assert outcome(gpu_checks.check_gpus([node(0, 1, gpus=[busy], cuda=CUDA)], "auto"))[0] == 4


# ---- the network ---------------------------------------------------------------------------------


@given(st.integers(0, 40))
def test_every_node_is_in_two_pairs_and_once_in_a_round(number):
    rounds = bandwidth.ring_rounds(number)
    assert len(rounds) <= 3
    for pairs in rounds:
        members = [k for pair in pairs for k in pair]
        assert len(set(members)) == len(members)
    together = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(set(together)) == len(together)
    for k in range(number):
        assert sum(k in pair for pair in together) == min(2, number - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 3, 80])
def test_sums_are_known_and_any_other_is_wrong(dtype, size):
    total = torch.zeros(99, dtype=dtype)
    for rank in reversed(range(size)):
        total += bandwidth.contribution(rank, 99, dtype)
    assert bandwidth.wrong_sum(total, size) is None
    without_one = total - bandwidth.contribution(1, 99, dtype)
    assert "33 of 99 sums are wrong" in bandwidth.wrong_sum(without_one, size)
    broken = total.clone()
    broken[5] = torch.nan
    assert "1 of 99 sums are wrong, the first is nan" in bandwidth.wrong_sum(broken, size)
    assert bandwidth.wrong_sum(total.roll(1), size) is not None or size % 3 == 0


def good(*members, rate=1e9):
    return Sums("gloo", members, rate)


def bad(*members):
    return Sums("gloo", members, None, None, {members[0]: "timed out"})


def test_a_group_is_as_fast_as_its_slowest_and_as_sound_as_its_weakest():
    order = {"backend": "gloo", "groups": [[0, 1], [2, 3], [4, 5], [6, 7]]}
    answers = {
        0: {"answer": {"seconds": 1.0}},
        1: {"answer": {"seconds": 2.0}},
        2: {"answer": {"seconds": 1.0}},
        4: {"answer": {"wrong": "all"}},
        5: {"answer": {"seconds": 1.0}},
        6: {"answer": {"failed": "timed out"}},
        7: {"error": "ValueError"},
    }
    fine, silent, wrong, failed = bandwidth.combine(order, answers)
    assert fine.bandwidth == bandwidth.BYTES["gloo"] / 2
    assert silent.failed == {3: "no answer"}
    assert wrong.wrong == "on rank 4: all" and not wrong.is_sound
    assert failed.failed == {6: "timed out", 7: "ValueError"}


def test_a_fault_within_a_node_names_it():
    nodes = [node(k) for k in range(3)]
    check = network_checks.check_within(nodes, [good(0, 1), bad(2, 3), good(4, 5)])
    assert outcome(check) == (4, ["n1"], "fault")
    wrong = Sums("nccl", (4, 5), None, "on rank 4: 3 of 9 sums are wrong")
    check = network_checks.check_within(nodes, [good(0, 1), wrong])
    assert outcome(check) == (4, ["n2"], "fault")


def test_a_slow_node_is_a_warning():
    nodes = [node(k) for k in range(4)]
    sums = [good(0, 1), good(2, 3, rate=4e8), good(4, 5), good(6, 7, rate=1.2e9)]
    check = network_checks.check_within(nodes, sums)
    assert outcome(check) == (0, [], "warning")
    assert check.findings[0].nodes == ("n1",)
    assert "400.0 MB/s" in check.findings[0].value
    assert network_checks.check_within(nodes[:2], sums[:2]).state == "fine"  # which is normal?


@pytest.mark.parametrize(
    "number, broken, expected",
    [
        (4, [], (0, [])),
        (4, [(0, 1), (1, 2)], (4, ["n1"])),
        (5, [(3, 4), (4, 0)], (4, ["n4"])),
        (6, [(0, 1), (1, 2), (2, 3)], (4, ["n1", "n2"])),  # two neighbours
        (4, [(1, 2)], (4, ["n1", "n2"])),  # one cable: both are named, neither is cut off
        (3, [(0, 1), (1, 2)], (4, ["n1"])),
        (2, [(0, 1)], (4, ["n0", "n1"])),  # nobody can say which
        (4, [(0, 1), (1, 2), (2, 3), (3, 0)], (2, [])),  # what all have in common
    ],
)
def test_the_node_all_of_whose_pairs_fail_is_named(number, broken, expected):
    nodes = [node(k, processes=1) for k in range(number)]
    pairs = [pair for pairs in bandwidth.ring_rounds(number) for pair in pairs]
    assert set(broken) <= set(pairs)
    sums = [bad(*pair) if pair in broken else good(*pair) for pair in pairs]
    code, names, _ = outcome(network_checks.check_pairs(nodes, sums))
    assert (code, names) == expected


def test_a_node_is_slow_where_its_best_pair_is():
    nodes = [node(k, processes=1) for k in range(5)]
    pairs = [pair for pairs in bandwidth.ring_rounds(5) for pair in pairs]
    sums = [good(*pair, rate=1e8 if 3 in pair else 1e9) for pair in pairs]
    check = network_checks.check_pairs(nodes, sums)
    assert outcome(check) == (0, [], "warning")
    assert [finding.nodes for finding in check.findings] == [("n3",)]


def test_where_only_all_together_fail_no_node_is_blamed():
    nodes = [node(k) for k in range(2)]
    assert outcome(network_checks.check_all(nodes, [bad(0, 1, 2, 3)])) == (2, [], "fault")
    fine = network_checks.check_all(nodes, [good(0, 1, 2, 3)])
    assert fine.stated == "all processes: gloo 1.0 GB/s"


# ---- on this machine -----------------------------------------------------------------------------


def test_the_token_is_gone_afterwards(tmp_path):
    place, request = Place(), Request(str(tmp_path), None, "cpu", str(IMAGE))
    with token_in(tmp_path) as token:
        assert folder_facts(replace(request, token=token), place) == FolderFacts()
    with pytest.raises(KeyError), token_in(tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with token_in(tmp_path / "none") as token:
        assert token is None


def test_a_token_with_other_content_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("adrpo_scale.cluster.preflight.survey.SEEN_SECONDS", 0.1)
    (tmp_path / "token").write_text("")
    request = Request(str(tmp_path), "token", "cpu", str(IMAGE))
    assert "without its content" in str(folder_facts(request, Place()).unseen)
    request = replace(request, token="another")
    assert "is not in it" in str(folder_facts(request, Place()).unseen)


def test_alone_everything_is_fine_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(CONFIGS.parent)
    assert preflight(PreflightOptions(IMAGE, run_dir=tmp_path / "run")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:-1]] == ["nodes", *SKIPPABLE[:-1]]
    assert lines[-1].startswith("fit")
    assert list(tmp_path.iterdir()) == []


def test_alone_on_a_full_disk_as_json(tmp_path, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        code = preflight(PreflightOptions(IMAGE, run_dir=disk / "run", as_json=True))
        left = list(disk.iterdir())
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
    stated = json.loads(capsys.readouterr().out)
    assert code == stated["exit_code"] == 2
    (space,) = [check for check in stated["checks"] if check["state"] == "fault"]
    assert space["name"] == "space"
    assert "1.0 MB free by the disk" in space["findings"][0]["value"]
    assert left == []


def test_a_broken_quota_command_is_a_finding_and_skipped_checks_are_not_made(tmp_path, capsys):
    quota = 'checkpoint.quota_command="echo many"'
    skipped = frozenset(SKIPPABLE) - {"space"}
    options = PreflightOptions(IMAGE, [quota], tmp_path / "run", skipped=skipped)
    assert preflight(options) == 2
    assert "expected the free bytes" in capsys.readouterr().out
    assert preflight(replace(options, skipped=frozenset(SKIPPABLE))) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_models_that_are_not_here_are_a_fault(tmp_path, capsys):
    options = PreflightOptions(IMAGE, ["domain.model=nobody/nothing"], tmp_path / "run")
    assert preflight(options) == 2
    stated = capsys.readouterr().out
    assert "domain.model: model 'nobody/nothing' is not in the cache" in stated
    assert "adrpo-scale prefetch" in stated


def test_a_check_that_does_not_exist_cannot_be_skipped():
    with pytest.raises(ConfigError, match="--skip disk: no such check; known: folder, models"):
        preflight(PreflightOptions(IMAGE, skipped=frozenset({"disk"})))


def test_bad_nodes_are_written_one_a_line(tmp_path, capsys):
    file = tmp_path / "bad"
    write_bad_nodes([], {"ADRPO_BAD_NODES": str(file)})
    assert not file.exists()
    write_bad_nodes(["n1", "n2"], {"ADRPO_BAD_NODES": str(file)})
    assert file.read_text() == "n1\nn2\n"
    write_bad_nodes(["n1"], {})
    write_bad_nodes(["n1"], {"ADRPO_BAD_NODES": str(tmp_path / "none" / "bad")})
    assert "exclude 1 node by hand" in capsys.readouterr().err


def test_the_table_is_calm_where_all_is_well_and_details_what_is_not(capsys):
    lists = [
        Check("folder", "4 nodes see it"),
        Check("models", "", (Finding("fault", "a\nb", "c", "d", ("n1",), "node"),)),
        Check("limits", "", (Finding("warning", "e", "f", "g"),)),
    ]
    view.show(lists, "title", 1.23)
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "✓ folder      4 nodes see it",
        "✗ models",
        "    n1: a",
        "    b",
        "    expected: c",
        "    remedy: d",
        "! limits",
        "    warning: e",
        "    expected: f",
        "    remedy: g",
        "unfit: --exclude=n1, in 1.2 s (exit code 4)",
    ]
    assert json.loads(view.as_json(lists, "title", 1.23))["bad_nodes"] == ["n1"]


@pytest.mark.parametrize("legacy", [False, True])
def test_the_sums_go_through_the_implementation_that_the_run_uses(monkeypatch, legacy):
    """torch 2.15 has two over NCCL; its own table says which one "nccl" builds in a run."""
    made = []
    for name in ("ProcessGroupNCCL", "ProcessGroupNCCL2"):
        if hasattr(distributed_c10d, name):

            class Group:
                Options = SimpleNamespace
                mine = name

                def __init__(self, store, rank, size, options, device=None):
                    made.append((self.mine, rank, size, device))

            monkeypatch.setattr(distributed_c10d, name, Group)
            monkeypatch.setattr(td, name, Group, raising=False)
    monkeypatch.setenv("TORCH_NCCL_BLOCKING_WAIT", "0")
    device = torch.device("cuda", 3)
    if legacy:
        monkeypatch.setenv("TORCH_DIST_USE_NCCL2", "0")
    else:
        monkeypatch.delenv("TORCH_DIST_USE_NCCL2", raising=False)
    bandwidth.new_group("nccl", None, 3, 8, timedelta(seconds=9), device)

    creators = vars(distributed_c10d)
    new = "_create_nccl2_process_group" in creators and not legacy
    expected = ("ProcessGroupNCCL2", 3, 8, device) if new else ("ProcessGroupNCCL", 3, 8, None)
    assert made == [expected]
