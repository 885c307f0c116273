"""Where a start begins: rank 0 looks, every rank gets the same answer, or the same error."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core import dist
from adrpo_scale.core.errors import AdrpoError, CheckpointError, ConfigError, RunFolderError
from adrpo_scale.run.compare import check_content
from adrpo_scale.run.load import load_config
from adrpo_scale.run.resume import FROM_ZERO, find_start
from tests.run.test_old_runs import COMMON, GOLDEN, RUNS
from tests.support.ranks import run_ranks
from tests.support.tiny import CONFIGS


def config_of(*overrides):
    name, settings = RUNS["image"]
    return load_config(CONFIGS / "demo" / f"{name}.toml", [*COMMON, *settings, *overrides]).config


@pytest.fixture
def run(tmp_path):
    """The folder of a run of two iterations."""
    to = tmp_path / "run"
    shutil.copytree(GOLDEN / "runs" / "image", to, ignore=shutil.ignore_patterns("expected"))
    return to


def damaged(run, name):
    """A copy of the newest checkpoint as one of another iteration, with one bit changed."""
    newest = run / "checkpoints" / "step-000002"
    folder, manifest = shutil.copytree(newest, run / "checkpoints" / name), Reader(newest).manifest
    later = dataclasses.replace(manifest, iteration=int(name.removeprefix("step-")))
    later.document["counters"]["iteration"] = later.iteration
    (folder / "manifest.json").write_text(later.to_text())
    file = folder / "rank-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def finds(rank, world, run, overrides, options):
    """Only rank 0 is told the folder: what another rank sees there does not count."""
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("adrpo_scale.checkpoint").addHandler(handler)
    try:
        start = find_start(config_of(*overrides), run if rank == 0 else Path("/nowhere"), **options)
    except AdrpoError as error:
        dist.barrier()  # the ranks are in step
        return type(error), str(error), error.agreed
    folders = [r and (r.folder.name, r.iteration) for r in (start.reader, start.origin)]
    return folders, start.allowed, start.notes, start.left_out, start.repeated, messages


def test_every_rank_begins_where_rank_0_has_found_it(run):
    damaged(run, "step-000003")
    overrides = ["logging.histograms_every=7", f"init_from={run}"]
    shutil.copytree(run / "checkpoints" / "step-000002", run / "origin")
    first, *others = run_ranks(finds, 3, run, overrides, {"allowed": ["init_from", "prompts"]})
    *facts, messages = first
    assert facts[0] == [("step-000002", 2), ("origin", 2)]
    assert facts[1] == ("init_from", "prompts")
    changed = [note.partition(":")[0] for note in facts[2]]
    assert changed == ["iterations", "init_from", "logging.histograms_every"]
    assert facts[3] is None  # other prompts are allowed, so they are looked through again
    assert facts[4]["iterations"] == 0
    assert [line for line in messages if "step-000003 is broken" in line] == messages != []
    assert others == [(*facts, [])] * 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000002",
        "step-000003.broken",
    ]


@pytest.mark.parametrize(
    ("overrides", "options", "kind", "match"),
    [
        ([], {"fresh": True}, RunFolderError, "has a checkpoint of iteration 2"),
        (["seed=5"], {}, ConfigError, "--allow-change seed"),
        (["init_from=/nowhere"], {"allowed": ["init_from"]}, CheckpointError, "/nowhere"),
    ],
)
def test_a_refusal_is_the_same_on_every_rank(run, overrides, options, kind, match):
    first, *others = run_ranks(finds, 3, run, overrides, options)
    assert first[0] is kind and match in first[1] and first[2]
    assert others == [first] * 2


def test_no_whole_checkpoint_is_an_error_that_changes_nothing(run):
    damaged(run, "step-000003")
    (run / "checkpoints" / "step-000002" / "rank-000.safetensors").unlink()
    first, second = run_ranks(finds, 2, run, [], {})
    assert first == second and first[0] is CheckpointError
    assert "none of the 2 checkpoints" in first[1] and "its SHA-256" in first[1]
    assert len(list((run / "checkpoints").glob("step-??????"))) == 2


def test_a_first_start_is_frozen_and_from_zero(tmp_path):
    start = find_start(config_of(), tmp_path)
    assert start == FROM_ZERO and start.iteration is None and start.left_out is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.allowed = ("seed",)


def test_a_checkpoint_that_does_not_state_the_files_beside_its_weights_is_compared_by_the_rest(run):
    folder = run / "checkpoints" / "step-000002"
    manifest = Reader(folder).manifest
    constant = manifest.document
    base = {name: fact for name, fact in constant["base"].items() if name != "frozen"}
    older = replace(manifest, document={**constant, "base": base})
    (folder / "manifest.json").write_text(older.to_text())
    check_content(Reader(folder), constant, [])
    with pytest.raises(CheckpointError, match="other base weights"):
        check_content(
            Reader(folder), {**constant, "base": {**base, "frozen": "", "sha256": ""}}, []
        )
