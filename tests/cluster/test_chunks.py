"""The largest rollout chunk that fits: what "auto" stands for in a plan, and for a run on a GPU."""

from __future__ import annotations

import io
import json
import logging

import pytest

from adrpo_scale.cluster.plan import choice
from adrpo_scale.cluster.plan.advice import ladder
from adrpo_scale.cluster.plan.base import Hardware
from adrpo_scale.cluster.plan.chunks import PHASES, sizes
from adrpo_scale.cluster.plan.hardware import GPUS
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.plan.view import show
from adrpo_scale.domains.base import CHUNK
from adrpo_scale.run.rollout_chunk import Machine
from tests.cluster.test_plan_advice import gpu_with
from tests.support.plans import config_of, hardware
from tests.support.tiny import demo_config

AUTO = "domain.rollout_chunk=auto"
# 96 samples on each of two ranks, in groups of six.
MANY = ["prompts.per_iteration=32", "prompts.group_size=6", "engine.shard=1"]


@pytest.mark.parametrize(
    ("samples", "group", "expected"),
    [
        (16, 4, [1, 2, 4, 8, 12, 16]),
        (14, 4, [1, 2, 4, 8, 12, 14]),  # all of them in one chunk, though a group is cut by ranks
        (5, 6, [1, 2, 3, 5]),
        (1, 8, [1]),
    ],
)
def test_chunks_are_parts_of_a_group_whole_groups_and_all(samples, group, expected):
    assert sizes(samples, group) == expected


def peak_with(number):
    """The highest peak of the phases that a chunk counts in."""
    config = demo_config(overrides=[*MANY, f"domain.rollout_chunk={number}"])
    plan = plan_of(config, hardware(2, 2))
    return max(plan.memory_of(phase) for phase in PHASES)


def test_auto_is_the_largest_that_fits_and_one_group_more_does_not(capsys):
    config = demo_config(overrides=[*MANY, AUTO])
    few, more = peak_with(72), peak_with(78)
    assert few < more
    plan = plan_of(config, gpu_with((few + more) // 2, 2))
    assert (plan.rollout_chunk, plan.largest_rollout_chunk, plan.chunk_is_auto) == (72, 72, True)
    assert max(plan.memory_of(phase) for phase in PHASES) == few
    show(plan)
    assert "domain.rollout_chunk = 72 (" in (text := capsys.readouterr().out)
    assert '"auto" → 72' in text
    assert not [rung for rung in ladder(config, plan) if "rollout_chunk" in str(rung.settings)]


def test_auto_takes_all_samples_where_there_is_room():
    plan = plan_of(demo_config(overrides=[*MANY, AUTO]), hardware(2, 2))
    assert plan.rollout_chunk == plan.largest_rollout_chunk == plan.rows == 96


def test_auto_is_the_number_of_before_on_a_cpu_and_where_nothing_fits():
    config = demo_config(overrides=[*MANY, AUTO])
    assert plan_of(config, Hardware(GPUS["cpu"], 1, 2, 1e9)).rollout_chunk == CHUNK
    plan = plan_of(config, gpu_with(1000, 2))
    assert plan.largest_rollout_chunk is None and plan.rollout_chunk == CHUNK
    assert not plan.fits


def answered(config, machine, monkeypatch, capsys):
    job = {"config": config.resolved(), "machine": vars(machine)}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(job)))
    choice.main()
    return json.loads(capsys.readouterr().out)


def test_a_run_is_told_what_plan_says(monkeypatch, capsys):
    config = demo_config(overrides=[*MANY, AUTO])
    machine = gpu_with((peak_with(72) + peak_with(78)) // 2, 2)
    run = Machine(machine.gpu.memory, 2, 2)
    assert answered(config, run, monkeypatch, capsys) == {"chunk": 72}
    unknown = demo_config(overrides=[AUTO, "engine.name=tests.cluster.test_plan_parts:ThirdEngine"])
    told = answered(unknown, run, monkeypatch, capsys)
    assert list(told) == ["fault"] and "planned_by" in told["fault"]


@pytest.mark.slow  # a process that imports everything
def test_the_process_that_chooses():
    config = demo_config(overrides=[*MANY, AUTO])
    assert choice.choose_apart(config, Machine(8 * 2**30, 2, 2)) == 96


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("exit 3", "exit code 3: no word"),
        ("echo lost >&2; exit 1", "exit code 1: lost"),
        ("echo no number", "Expecting value"),
        (None, "No such file"),
    ],
)
def test_a_process_that_gives_no_answer_is_a_warning(program, fault, tmp_path, monkeypatch, caplog):
    python = tmp_path / "python"
    if program is not None:
        python.write_text(f"#!/bin/sh\ncat > /dev/null\n{program}\n")
        python.chmod(0o755)
    monkeypatch.setattr(choice.sys, "executable", str(python))
    with caplog.at_level(logging.WARNING):
        assert choice.choose_apart(demo_config(overrides=[AUTO]), Machine(2**33, 2, 2)) is None
    assert "plan cannot choose" in caplog.text and fault in caplog.text


@pytest.mark.slow  # half a minute: the thinker of 7B
def test_auto_decodes_all_of_the_shipped_thinkers_samples_at_once_on_ten_gpus():
    plan = plan_of(config_of("configs/omni/avqa_adrpo.toml"), Hardware(GPUS["a6000"], 1, 10, 1e10))
    assert plan.fits and plan.chunk_is_auto
    assert plan.rollout_chunk == plan.rows == 64
