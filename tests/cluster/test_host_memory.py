"""Host memory of a node: what `plan` counts and prints, and what `preflight` compares it with."""

from __future__ import annotations

import pytest

from adrpo_scale.cluster.plan.host import ENCODERS, host_items, host_line, peak_of
from adrpo_scale.cluster.plan.planner import plan_of, with_cache
from adrpo_scale.cluster.plan.view import facts, show
from adrpo_scale.cluster.preflight.host import check_host
from adrpo_scale.run.load import load_config
from tests.support.given_pairs import picture_pairs
from tests.support.plans import hardware
from tests.support.survey import nodes_with
from tests.support.tiny import CONFIGS, FULL, demo_config

RANKS = (16, 8)


def amounts(config, encoders=0, trained=1000, elements=0, ranks=RANKS):
    return {i.name: i.bytes for i in host_items(config, ranks, encoders, trained, elements)}


def test_each_part_is_that_of_one_node():
    copies = "copies for checkpoints in the background"
    # Weights and two moments in float32; half of them on each of two nodes.
    assert amounts(demo_config()) == {copies: 3 * 4 * 500}
    both = ["ema_decay=0.9", "reference.kind=ema"]
    assert amounts(demo_config(overrides=both)) == {copies: 5 * 4 * 500}
    assert amounts(demo_config(overrides=["checkpoint.background=false"]), 7) == {ENCODERS: 7}
    offload = [
        "engine.name=zero3",
        "engine.shard=all",
        "engine.offload_optimizer=true",
        "checkpoint.background=false",
    ]
    offload += ["engine.offload_parameters=true"]
    config = demo_config(overrides=[*FULL, *offload])
    assert amounts(config, elements=3000) == {
        "optimizer: gradients, masters, moments": 4 * 4 * 500,
        "shards of parameters": 4 * 1500,
    }


def test_given_pictures_are_kept(tmp_path):
    kept = amounts(picture_pairs(tmp_path))["latents of given pictures, at most"]
    assert kept == 8 << 30


def test_loading_and_training_follow_each_other():
    items = host_items(demo_config(), RANKS, 10**9, 10**9)
    assert peak_of(items) == 6 * 10**9
    assert host_line(items) == (
        "1.0 GB while the run loads (text encoders of one rank), 6.0 GB in training (copies for "
        "checkpoints in the background)"
    )
    assert host_line([]) == "0 bytes while the run loads, 0 bytes in training"


def test_a_plan_says_what_a_node_takes(capsys):
    plan = plan_of(demo_config(), hardware())
    sizes = {item.name: item.bytes for item in plan.host}
    loading = sum(i.bytes for i in plan.items if i.name.endswith("while prompts are embedded"))
    assert sizes[ENCODERS] == loading > 0
    assert facts(plan)["host_bytes"] == peak_of(plan.host)
    show(plan)
    assert "host memory of a node, beside its processes:" in capsys.readouterr().out
    # Every prompt is embedded already: nothing is loaded.
    assert ENCODERS not in {item.name for item in with_cache(plan, 0).host}
    assert ENCODERS in {item.name for item in with_cache(plan, None).host}


SD3 = load_config(CONFIGS / "sd3" / "adrpo.toml").config


@pytest.mark.parametrize(
    ("free", "state"), [(16_000_000_000, "fine"), (8_000_000_000, "warning"), (None, "fine")]
)
def test_preflight_compares_it_with_the_memory_of_each_node(monkeypatch, free, state):
    monkeypatch.setattr("adrpo_scale.cluster.preflight.host.trained_elements", lambda config: 10**6)
    nodes = nodes_with("memory", [64_000_000_000, free])
    check = check_host(nodes, SD3, RANKS, bytes_to_cache=1)
    assert check.state == state
    assert "11.4 GB while the run loads (text encoders of one rank)" in check.stated
    if state == "warning":
        (finding,) = check.findings
        assert finding.value == "8.0 GB of host memory free" and len(finding.nodes) == 1
        assert "#SBATCH --mem=0" in finding.remedy and "domain.t5 = false" in finding.remedy
    embedded = check_host(nodes, SD3, RANKS, bytes_to_cache=0)
    assert embedded.state == "fine" and ENCODERS not in embedded.stated
