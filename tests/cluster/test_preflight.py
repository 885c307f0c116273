"""What a preflight makes of what nodes say, and what it looks at on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.cluster.preflight import bandwidth, checks, gpu_checks, network_checks, view
from adrpo_scale.cluster.preflight.bandwidth import Sums
from adrpo_scale.cluster.preflight.base import (
    Check,
    Finding,
    Place,
    bad_nodes,
    counted,
    exit_code,
    find_place,
    listed,
)
from adrpo_scale.cluster.preflight.estimate import trained_elements
from adrpo_scale.cluster.preflight.node import (
    CudaFacts,
    FolderFacts,
    GpuFacts,
    Limits,
    ModelFacts,
    Node,
    NodeFacts,
    Request,
    Survey,
    to_data,
    to_nodes,
    to_request,
    to_survey,
)
from adrpo_scale.cluster.preflight.run import (
    SKIPPABLE,
    PreflightOptions,
    preflight,
    write_bad_nodes,
)
from adrpo_scale.cluster.preflight.survey import folder_facts, token_in
from adrpo_scale.core.disk_space import Space
from adrpo_scale.core.errors import ConfigError, DiskSpaceError, NodeError
from adrpo_scale.core.errors import exit_code as code_of
from adrpo_scale.hub.needs import HubNeed
from tests.support.tiny import CONFIGS, FULL, demo_config, demo_trainer

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
ENVIRONMENT = {
    "commit": "a" * 40,
    "versions": {"python": "3.11", "torch": "2.15"},
    "cuda": "13.2",
    "driver": "590.1",
    "gpu": None,
}
CUDA = CudaFacts(available=True, count=2, wheel="13.2", driver="590.1", granted=2)
GPU = GpuFacts(0, "A6000", 48 << 30, 500_000_000)


def node(number, processes=2, environment=None, gpus=(), **facts):
    name = f"n{number}"
    ranks = tuple(range(number * processes, (number + 1) * processes))
    environment = ENVIRONMENT | (environment or {}) | {"host": name}
    return Node(number, name, ranks, NodeFacts(environment, **facts), tuple(gpus))


def nodes_with(name, values, **others):
    return [node(k, **{name: value}, **others) for k, value in enumerate(values)]


def outcome(check):
    """(exit code, nodes to exclude, state)"""
    return exit_code([check]), bad_nodes([check]), check.state


# ---- words and codes -----------------------------------------------------------------------------


def test_counts_and_lists_as_people_write_them():
    assert [counted(n, "node") for n in (1, 2)] == ["1 node", "2 nodes"]
    assert [counted(n, "process") for n in (1, 2)] == ["1 process", "2 processes"]
    assert listed(["a", "b", "a", "c"], 2) == "a, b and 1 more"


def test_exit_codes_say_who_can_mend_it():
    def of(*findings):
        return exit_code([Check("x", "", findings)])

    unfit = Finding("fault", "", "", "", ("n1",), "node")
    wrong = Finding("fault", "", "", "", ("n2",), "run")
    assert of() == of(replace(unfit, severity="warning")) == 0
    assert of(unfit) == 4
    assert of(wrong) == of(unfit, wrong) == 2
    assert bad_nodes([Check("x", "", (unfit, wrong, unfit))]) == ["n1"]
    assert code_of(NodeError("")) == 4
    assert code_of(DiskSpaceError("")) == 2


@pytest.mark.parametrize(
    "env, expected",
    [
        ({}, (0, 1, 0, 1, 0)),
        (
            {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
            (5, 8, 1, 4, 1),
        ),
        (
            # Uneven nodes, as torchrun tells them.
            {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            | {"GROUP_RANK": "2"},
            (5, 6, 0, 1, 2),
        ),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}
            | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1"},
            (1, 4, 0, 2, 1),  # cyclic
        ),
    ],
)
def test_a_process_knows_its_node(env, expected):
    place = find_place(env | {"ADRPO_NODES": "n0, n1,n2"})
    found = (place.rank, place.world, place.local_rank, place.local_world, place.node)
    assert found == expected
    assert place.name == f"n{expected[-1]}"


def test_a_node_without_a_given_name_has_its_host_name():
    assert find_place({}).name == os.uname().nodename
    assert find_place({}).name_of(0) is None


def test_facts_survive_the_way_to_rank_0():
    need = HubNeed("a/b", "domain.model", ("*.json",), (), "model")
    request = Request("/runs", None, "auto", "/c.toml", (need,), frozenset({"gpus"}))
    assert to_request(json.loads(json.dumps(to_data(request)))) == request
    facts = NodeFacts(
        ENVIRONMENT, FolderFacts("gone"), ModelFacts(("x",), "f"), ("/tmp", 5), Limits(1), CUDA
    )
    surveys = [Survey(1, 0, "n0", None, GPU), Survey(0, 0, "n0", facts, None)]
    again = [to_survey(json.loads(json.dumps(to_data(survey)))) for survey in surveys]
    assert again == surveys
    assert to_nodes(again) == [Node(0, "n0", (0, 1), facts, (GPU,))]


# ---- who is there --------------------------------------------------------------------------------


def test_whoever_does_not_come_is_named_by_node():
    place = Place(world=8, local_world=2, names=("n0", "n1", "n2", "n3"))
    check = checks.check_present(place, [3, 4, 5], 120, "answer")
    assert outcome(check) == (4, ["n1", "n2"], "fault")
    first, second = check.findings
    assert first.value == "rank 3 did not answer within 120 s"
    assert second.value == "did not answer within 120 s"
    assert "--exclude=n2" in second.remedy
    assert checks.check_present(place, [], 120, "answer").stated == "4 nodes, 8 processes"


def test_without_names_the_ranks_are_named_and_no_node_is_excluded():
    (finding,) = checks.check_present(Place(world=4, local_world=2), [2, 3], 9, "answer").findings
    assert "rank 2, rank 3" in finding.value
    assert "ADRPO_NODES" in finding.remedy
    assert finding.nodes == () and finding.scope == "node"


# ---- folders, models, room -----------------------------------------------------------------------

SEEN, BLIND = FolderFacts(), FolderFacts("there is no such folder", "No such file")
READ_ONLY = FolderFacts(None, "Read-only file system")


@pytest.mark.parametrize(
    "stated, expected",
    [
        ([SEEN], (0, [], "fine")),
        ([SEEN, SEEN, SEEN], (0, [], "fine")),
        ([SEEN, BLIND], (4, ["n1"], "fault")),
        ([SEEN, SEEN, BLIND], (4, ["n2"], "fault")),
        ([SEEN, READ_ONLY, BLIND], (4, ["n2", "n1"], "fault")),
        ([READ_ONLY, SEEN, SEEN], (4, ["n0"], "fault")),
        ([SEEN, BLIND, BLIND], (2, [], "fault")),  # a disk of rank 0's node alone
        ([READ_ONLY, READ_ONLY], (2, [], "fault")),  # nobody may write there
        ([READ_ONLY], (2, [], "fault")),
    ],
)
def test_run_folder(stated, expected):
    check = checks.check_folder(nodes_with("folder", stated), "/runs")
    assert outcome(check) == expected
    assert len(check.findings) <= len(stated)  # a node that sees nothing need not write


WHOLE, OTHER = ModelFacts((), "aa"), ModelFacts((), "bb")
MISSING = ModelFacts(("domain.model = 'a/b': not in the cache",), "cc")


@pytest.mark.parametrize(
    "stated, expected",
    [
        ([WHOLE, WHOLE], (0, [], "fine")),
        ([WHOLE, WHOLE, MISSING], (4, ["n2"], "fault")),
        ([MISSING, MISSING], (2, [], "fault")),
        ([MISSING], (2, [], "fault")),
        ([OTHER, WHOLE, WHOLE], (4, ["n0"], "fault")),
        ([WHOLE, OTHER], (4, ["n1"], "fault")),  # of two, rank 0's is taken as right
        ([WHOLE, OTHER, MISSING], (4, ["n2", "n1"], "fault")),
    ],
)
def test_models(stated, expected):
    assert outcome(checks.check_models(nodes_with("models", stated), 2)) == expected


def test_what_all_lack_is_to_be_prefetched():
    (finding,) = checks.check_models(nodes_with("models", [MISSING, MISSING]), 1).findings
    assert finding.value == MISSING.missing[0]
    assert "adrpo-scale prefetch" in finding.remedy


def test_room_by_bytes_and_by_files():
    def state(space, size=1000, count=3, files=9):
        check = checks.check_space(space, "/runs", size, count, files, "estimated")
        return outcome(check)[0], check.findings[0].value if check.findings else check.stated

    assert state(Space(3000, 9, "disk")) == (
        0,
        "3.0 kB free; 3.0 kB for 3 checkpoints of 1.0 kB (estimated)",
    )
    assert state(Space(2999, None, "quota")) == (2, "/runs: 3.0 kB free by the quota")
    assert state(Space(3000, 8, "disk")) == (2, "/runs: 8 more files allowed")
    assert state(Space(1, None, "disk"), None)[0] == 0


def test_little_scratch_is_a_warning_that_names_the_node():
    check = checks.check_scratch(nodes_with("scratch", [("/tmp", 10**11), ("/tmp", 10**8)]))
    assert outcome(check) == (0, [], "warning")
    assert check.findings[0].nodes == ("n1",)


@pytest.mark.parametrize("more, share", [([], 1), (FULL, 1.01)])  # files hold buffers, too
def test_the_estimate_is_what_is_trained(tmp_path, more, share):
    config = demo_config("adrpo", more)
    engine = demo_trainer(tmp_path / "run", config).engine
    trained = sum(tensor.numel() for tensor in engine.trained_slices().values())
    assert trained <= trained_elements(config) <= share * trained


# ---- versions, clocks, limits --------------------------------------------------------------------


@pytest.mark.parametrize(
    "differences, expected",
    [
        ([{}, {}, {}], (0, [], "fine")),
        ([{}, {"commit": "b" * 40}, {}], (4, ["n1"], "fault")),
        ([{"versions": {"torch": "2.11"}}, {}, {}], (4, ["n0"], "fault")),
        ([{}, {"versions": {"torch": "2.11"}}], (4, ["n1"], "fault")),
        ([{}, {}, {"driver": "580.65"}], (0, [], "warning")),
    ],
)
def test_versions(differences, expected):
    nodes = [node(k, environment=difference) for k, difference in enumerate(differences)]
    check = checks.check_versions(nodes)
    assert outcome(check) == expected
    assert "torch 2.15" in check.stated or differences[0]


def test_clocks_are_compared_with_the_middle_one():
    nodes = [node(k) for k in range(4)]
    check = checks.check_clocks(nodes, {0: 0.0, 1: 0.1, 2: -3600.0, 3: -0.1})
    assert outcome(check) == (0, [], "warning")
    assert check.findings[0].value == "the clock is 3600 s behind"
    assert check.findings[0].nodes == ("n2",)
    # Rank 0's own clock may be the one that is wrong.
    ahead = checks.check_clocks(nodes, {0: 0.0, 1: -90.0, 2: -90.0, 3: -90.0})
    assert ahead.findings[0].nodes == ("n0",)
    assert checks.check_clocks(nodes, {0: 0.0, 1: 5.0}).stated == "5 s apart at most"


def test_limits_are_warnings():
    few = Limits(shared_memory=64 << 20, open_files=256, locked_memory=65536, infiniband=True)
    enough = Limits(shared_memory=1 << 34, open_files=1 << 20, locked_memory=65536)
    nodes = nodes_with("limits", [enough, few])
    check = checks.check_limits(nodes, world=80, is_cuda=True)
    assert outcome(check) == (0, [], "warning")
    assert [f.value for f in check.findings] == [
        "ulimit -n is 256",
        "/dev/shm has 67.1 MB",
        "ulimit -l is 65536 bytes",
    ]
    assert len(checks.check_limits(nodes, world=80, is_cuda=False).findings) == 2


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
