"""A plan as a whole: what it adds up, the hardware it accepts, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.plan.base import DoesNotFitError, Gpu
from adrpo_scale.cluster.plan.hardware import build_hardware, find_gpu, gpu_of_device
from adrpo_scale.cluster.plan.planner import plan_of, with_time_limit
from adrpo_scale.cluster.plan.view import facts, show
from adrpo_scale.cluster.sweep import size
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of
from tests.support.plans import hardware
from tests.support.tiny import CONFIGS, FULL, demo_config


@pytest.mark.parametrize(
    "overrides",
    [
        ["engine.shard=1", "engine.dtype=bfloat16"],
        ["engine.shard=node", *FULL],
        ["engine.shard=all", "engine.dtype=bfloat16"],
        ["engine.name=zero3", "engine.shard=node", *FULL],
    ],
)
def test_a_plan_adds_up(overrides, capsys):
    config = demo_config(overrides=[*overrides, "evaluation.every=1"])
    plan = plan_of(config, hardware(), name="demo")
    assert plan.fits and not plan.warnings
    assert {m.phase for m in plan.memory} == {"load", "rollout", "reward", "update", "evaluation"}
    update = sum(i.bytes for i in plan.items if "update" in i.phases)
    assert plan.memory_of("update") == update
    assert plan.iteration_seconds > 0 and plan.days * 24 * 4 == pytest.approx(plan.gpu_hours)
    assert bool(plan.traffic) and plan.largest_micro_batch == 4  # a rank has no more rows
    json.dumps(facts(plan))
    show(plan)
    assert "policy: parameters" in capsys.readouterr().out


def test_a_plan_leaves_no_process_group_behind():
    plan_of(demo_config(overrides=["engine.shard=all"]), hardware())
    assert not torch.distributed.is_initialized()


def test_a_sweep_costs_what_its_plans_say(tmp_path):
    (tmp_path / "six.toml").write_text(
        f'base = "{CONFIGS}/demo/image_adrpo.toml"\n'
        '[grid]\nseed = [0, 1, 2]\n"algorithm.beta0" = [0.5, 2.0]\n'
    )
    runs, asked, machine = runs_of(read_sweep(tmp_path / "six.toml")), [], hardware(1, 1)
    one = plan_of(demo_config(), machine)

    def plan(config, hardware):
        asked.append(config.algorithm.beta0)
        return one

    found = size.size_of(runs, machine, 8, 2, plan)
    assert asked == [0.5, 2.0]  # seeds are planned once
    assert found.runs == 6 and found.nodes == Fraction(1, 8)
    assert found.gpu_hours == pytest.approx(6 * one.gpu_hours)
    assert found.hours == pytest.approx(3 * one.gpu_hours)
    trained = sum(i.bytes for i in one.items if i.name == "policy: Adam's moments") // 8
    weights_and_moments = 12 * trained
    assert found.bytes == 6 * one.disk_bytes == 6 * weights_and_moments * 2 > 0  # of 1 iteration
    text = size.line(found)
    assert text.startswith("6 runs · 1/8 node each · ") and " hours at 2 at once · " in text
    small = replace(one, usable=one.peak.bytes - 1)
    with pytest.raises(DoesNotFitError, match=r"element #0 seed=0 beta0=0.5 does not fit.*--set"):
        size.size_of(runs, machine, 1, 1, lambda config, hardware: small)


def test_ranks_without_work_are_warned_of():
    plan = plan_of(demo_config(), hardware(32, 8))
    assert "16 have none" in plan.warnings[0] and "filler" in plan.warnings[1]
    assert "raise prompts.per_iteration" in plan.warnings[1]  # there is one minibatch already


def test_jobs_of_a_time_limit():
    plan = replace(plan_of(demo_config(), hardware()), iterations=1000)
    seconds = 1000 * plan.iteration_seconds
    hours = (plan.seconds_of("load") + 60 + seconds / 2.5) / 3600
    assert with_time_limit(plan, hours, 60).jobs == 3
    with pytest.raises(ConfigError, match="no job would complete an iteration"):
        with_time_limit(plan, 1 / 3600, 60)


def test_machines_that_are_none_are_refused():
    with pytest.raises(ConfigError, match=r"did you mean a6000\? known: a6000, l40s"):
        find_gpu("a600")
    with pytest.raises(ConfigError, match="--nodes 0"):
        build_hardware("a6000", 0, 8, 100)
    with pytest.raises(ConfigError, match="--network-gbit"):
        build_hardware("a6000", 1, 8, 0)
    assert gpu_of_device("NVIDIA A100-SXM4-80GB").name == "a100-80"
    assert isinstance(gpu_of_device("NVIDIA H200"), Gpu)
    with pytest.raises(ConfigError, match="Tesla T4"):
        gpu_of_device("Tesla T4")


def test_the_verb_prints_json():
    path = str(CONFIGS / "demo" / "image_adrpo.toml")
    arguments = ["plan", path, "--nodes", "2", "--gpus-per-node", "2", "--json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["fits"] and found["hardware"]["nodes"] == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_thinker_on_ten_nodes_takes_under_a_minute_and_4_gb():
    """Of processor time: what else runs on this machine shall not count."""
    program = (
        "import resource, sys; from adrpo_scale.cli.main import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n"
        "    used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6, file=sys.stderr)\n"
    )
    arguments = ["plan", "configs/omni/avqa_adrpo.toml", "--nodes", "10", "--json"]
    command = [sys.executable, "-c", program, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=CONFIGS.parent)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["fits"] and found["hardware"]["nodes"] == 10
    seconds, gigabytes = map(float, result.stderr.split()[-2:])
    assert seconds < 60 and gigabytes < 4


def test_time_counts_what_rank_0_sends_and_the_share_of_a_save():
    def plan(world, *settings):
        return plan_of(demo_config(overrides=["engine.shard=1", *settings]), hardware(world, world))

    alone, two = plan(1), plan(2)
    sent = {t.phase: t.communicate for t in two.times}["load"]
    assert sent > 0 and {t.phase: t.communicate for t in alone.times}["load"] == 0
    rare, often = plan(1, "checkpoint.every_minutes=60"), plan(1, "checkpoint.every_iterations=1")
    assert 0 < rare.seconds_of("save") < often.seconds_of("save")
    waiting = plan(1, "checkpoint.every_iterations=1", "checkpoint.background=false")
    assert waiting.seconds_of("save") > often.seconds_of("save")
    assert often.iteration_seconds == pytest.approx(
        sum(t.seconds for t in often.times if t.phase != "load")
    )
