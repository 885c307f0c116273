"""What a preflight makes of what nodes say, and what it looks at on this machine."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest

from adrpo_scale.cluster.preflight import checks
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
    FolderFacts,
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
from adrpo_scale.core.disk_space import Space
from adrpo_scale.core.errors import DiskSpaceError, NodeError, StopRequested
from adrpo_scale.core.errors import exit_code as code_of
from adrpo_scale.core.signals import stopping_at_once
from adrpo_scale.hub.needs import HubNeed
from tests.support.survey import CUDA, ENVIRONMENT, GPU, node, nodes_with, outcome
from tests.support.tiny import FULL, demo_config, demo_trainer

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


def test_a_signal_inside_an_import_stops_although_libraries_wrap_what_is_raised_there():
    with pytest.raises(StopRequested), stopping_at_once():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception as error:  # as diffusers' and transformers' lazy modules do
            raise RuntimeError("Failed to import") from error
