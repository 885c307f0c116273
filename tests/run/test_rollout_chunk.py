"""`domain.rollout_chunk = "auto"`: chosen once in a run, on every rank alike, and kept."""

from __future__ import annotations

import json
import shutil

import pytest

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains.base import AUTO, CHUNK
from adrpo_scale.evaluation.sample import model_source
from adrpo_scale.run import out_of_memory
from adrpo_scale.run.folder import write_config
from adrpo_scale.run.load import load_config
from adrpo_scale.run.resume import find_start
from adrpo_scale.run.rollout_chunk import Machine, as_recorded, decided
from tests.run.test_old_runs import COMMON, GOLDEN, RUNS
from tests.support import starts
from tests.support.pretend_cuda import pretend_cuda, stubs
from tests.support.ranks import run_ranks
from tests.support.tiny import CONFIGS, demo_config

GIB = 2**30
CHOICE = "domain.rollout_chunk=auto"


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", "'all'", "1e12", "[8]"])
def test_what_is_no_number_of_samples_is_named(value):
    with pytest.raises(ConfigError, match=r"domain\.rollout_chunk = .*: Input should be ") as error:
        demo_config(overrides=[f"domain.rollout_chunk={value}"])
    assert len(str(error.value).splitlines()) == 1


def test_a_run_is_the_same_run_whatever_its_chunk_is():
    digests = {
        demo_config(overrides=[f"domain.rollout_chunk={value}"]).digest()
        for value in ("null", "auto", CHUNK, 64)
    }
    assert len(digests) == 1
    assert demo_config(overrides=["domain.rollout_chunk=null"]).domain.rollout_chunk == AUTO


def test_what_nobody_has_chosen_is_the_number_of_before():
    config = demo_config(overrides=[CHOICE])
    assert config.domain.chunk == CHUNK == 16
    assert f"domain.rollout_chunk={CHUNK // 2};" in out_of_memory.remedy(config, "rollout")
    assert model_source("demo:image", "flow").config.domain.chunk == CHUNK  # of `sample MODEL`


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"domain": {"rollout_chunk": 40}}, 40),
        ({"domain": {"rollout_chunk": "auto"}}, CHUNK),  # of a trainer that nobody chose for
        ({"domain": {}}, CHUNK),
        ({}, CHUNK),
    ],
)
def test_the_number_of_a_record(settings, number):
    assert as_recorded(demo_config(overrides=[CHOICE]), settings).domain.rollout_chunk == number
    stated = demo_config(overrides=["domain.rollout_chunk=3"])
    assert as_recorded(stated, settings) is stated


def never(config, machine):
    raise AssertionError("a number was chosen again")


def test_a_run_of_before_goes_on_with_its_number_and_without_a_word(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", run, ignore=shutil.ignore_patterns("expected"))
    name, settings = RUNS["image"]
    overrides = [*COMMON, *settings, CHOICE]
    config = load_config(CONFIGS / "demo" / f"{name}.toml", overrides).config
    (run / "config.json").write_text('{"domain": {"rollout_chunk": 5}}')  # the checkpoint's counts
    start = find_start(config, run)
    assert "rollout_chunk" not in str(start.notes)
    recorded = start.reader.manifest.document["config"]["domain"]["rollout_chunk"]
    assert decided(config, run, start.reader, never).domain.rollout_chunk == recorded == 72


def test_on_a_cpu_it_is_the_number_of_before(tmp_path):
    start = starts.train(tmp_path, 1, [CHOICE])
    assert start.wait() == [0], start.text()
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["domain"]["rollout_chunk"] == CHUNK
    recorded = starts.newest(run).manifest.document["config"]
    assert recorded["domain"]["rollout_chunk"] == CHUNK
    config = demo_config(overrides=[CHOICE])
    assert decided(config, run, starts.newest(run), never).domain.rollout_chunk == CHUNK
    assert "rollout_chunk" not in start.text()


def chosen_by_ranks(rank, world, run):
    """Two starts before the first checkpoint, on two GPUs, one of which has less memory."""
    config, asked = demo_config(overrides=[CHOICE]), []

    def choose(config, machine):
        asked.append(machine)
        return 24

    with pretend_cuda(devices=world):
        stubs.Properties.total_memory = (48 - 24 * rank) * GIB
        first = decided(config, run, None, choose)
        if dist.is_main():
            run.mkdir()
            write_config(run, first.resolved())
        dist.barrier()
        again = decided(config, run, None, never)
        stated = decided(demo_config(overrides=["domain.rollout_chunk=3"]), run, None, never)
        none = decided(config, run / "nothing", None, lambda *_: None)
    numbers = [each.domain.rollout_chunk for each in (first, again, stated, none)]
    return numbers, [vars(machine) for machine in asked]


@pytest.mark.parametrize("world", [1, 2])
def test_every_rank_has_the_number_that_rank_0_chose_for_the_smallest_gpu(world, tmp_path):
    found = run_ranks(chosen_by_ranks, world, tmp_path / "run")
    numbers = [24, 24, 3, CHUNK]
    machine = vars(Machine((48 - 24 * (world - 1)) * GIB, world, world))
    assert found == [(numbers, [machine]), (numbers, [])][:world]
