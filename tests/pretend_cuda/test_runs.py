"""Whole runs on the pretended device: loaded, evaluated, rolled out, rewarded, updated, saved and
resumed without a fault, with the numbers of the CPU: the same kernels ran on the same values."""

from __future__ import annotations

import json

import pytest

from tests.support.pretended_runs import trained, trained_looking_at_every_token
from tests.support.ranks import run_ranks
from tests.support.starts import newest, timeless
from tests.support.tiny import records

START_AND_SAVE = 7


def on(device, task, world, run, *settings, of=trained):
    return run_ranks(of, world, task, device, run, *settings, grouped=False)


def stored(run):
    """Every number of the newest checkpoint."""
    reader = newest(run)
    assert not list(reader.faults())
    return {
        (kind, name): reader.whole(name, kind).tolist()
        for kind, tensors in reader.manifest.sets.items()
        for name in tensors
    }


def lines(run, file):
    there = records(run, file) if (run / file).exists() else []
    kept = [timeless(line) for line in there]
    return [{n: v for n, v in line.items() if not n.startswith("peak_gb")} for line in kept]


def assert_same_numbers(run, other):
    for file in ("metrics.jsonl", "eval.jsonl"):
        assert lines(run, file) == lines(other, file)
    assert stored(run) == stored(other)


# The same numbers only where rows leave a batch at the same tokens as on a CPU.
@pytest.mark.parametrize("task", ["text", "image", "audio"])
def test_a_run_in_two_starts_has_no_fault_and_the_numbers_of_a_cpu(task, tmp_path):
    run, other = tmp_path / "device" / "run", tmp_path / "cpu" / "run"
    first, again = (
        on("cuda", task, 1, run, f"iterations={n}", of=trained_looking_at_every_token)[0]
        for n in (1, 2)
    )
    on("cpu", task, 1, other, "iterations=2")
    assert first["problems"] == again["problems"] == []
    assert [line["iteration"] for line in records(run)] == [1, 2]
    assert_same_numbers(run, other)
    print(task, "host syncs of the second start:", again["syncs"][:12])


def test_how_often_a_run_waits_for_the_device(tmp_path):
    """Text, one micro-batch an iteration: 23 times, 3 of them for the 20 tokens of its chunk."""
    (seen,) = on("cuda", "text", 1, tmp_path / "run", "iterations=2", "evaluation.every=0")
    print(*seen["syncs"], sep="\n")
    assert sum(count for *_, count in seen["syncs"]) <= 2 * 23 + START_AND_SAVE


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        ("engine.name=fsdp2", "engine.shard=all"),
        ("engine.name=zero3", "engine.shard=all"),
    ],
    ids=["fsdp2", "zero3"],
)
def test_two_ranks_have_no_fault_and_the_numbers_of_a_cpu(engine, tmp_path):
    run, other = tmp_path / "device" / "run", tmp_path / "cpu" / "run"
    seen = on("cuda", "text", 2, run, "iterations=2", *engine, of=trained_looking_at_every_token)
    on("cpu", "text", 2, other, "iterations=2", *engine)
    for rank in seen:
        assert rank["problems"] == []
        dtypes = {dtype for _, dtype, _, _ in rank["collectives"]}
        assert {"float32", "int64"} <= dtypes
    assert_same_numbers(run, other)


@pytest.mark.slow
def test_a_run_chooses_its_chunk_at_the_first_start_alone(tmp_path):
    """As many samples as the rank has: the device has 48 GiB."""
    run = tmp_path / "run"
    for iterations in (1, 2):
        settings = [f"iterations={iterations}", "domain.rollout_chunk=auto"]
        assert on("cuda", "text", 1, run, *settings)[0]["problems"] == []
        assert json.loads((run / "config.json").read_text())["domain"]["rollout_chunk"] == 8
        assert newest(run).manifest.document["config"]["domain"]["rollout_chunk"] == 8
    said = (run / "logs" / "rank-000.log").read_text()
    assert said.count("as many samples as fit 48.0 GiB") == 1
    assert said.count("→ 8, as this run began") == 1
