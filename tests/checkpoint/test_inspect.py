"""`adrpo-scale inspect`: what is in a checkpoint, and exit code 1 where a hash does not hold."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from adrpo_scale.checkpoint.base import MANIFEST
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import CheckpointError
from tests.support.ranks import run_ranks
from tests.support.tiny import demo_config, demo_trainer


def make_run(rank, world, folder):
    overrides = ["iterations=2", "ema_decay=0.5", "checkpoint.every_iterations=1"]
    trainer = demo_trainer(folder, demo_config(overrides=overrides))
    trainer.train()
    trainer.saver.save_now()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with checkpoints of iterations 1 and 2, of two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run_ranks(make_run, 2, folder)
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it to break."""
    return shutil.copytree(whole, tmp_path / "run")


def inspected(*line):
    return CliRunner().invoke(cli.app, ["inspect", *map(str, line)], env={"COLUMNS": "200"})


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_whole_checkpoint_is_described(run):
    answer = inspected(run)
    assert answer.exit_code == 0, answer.output
    for text in (
        "iteration 2 of run whole (resumable): adrpo, seed 0, 2 processes",
        "base model: demo:image",
        "LoRA, rank 16, alpha 16",
        "exp_avg_sq",
        "reward clip: mean",
        "checkpoints/step-000001",
        "every hash of 2 files and the manifest holds",
    ):
        assert text in answer.output, text


def test_json_is_for_programs(run):
    answer = inspected(run, "--json")
    facts = json.loads(answer.output)
    assert answer.exit_code == 0
    assert facts["whole"] and facts["faults"] == []
    assert (facts["iteration"], facts["kind"], facts["world_size"]) == (2, "full", 2)
    assert facts["lora"] == {"rank": 16, "alpha": 16}
    assert facts["sets"].keys() == {"policy", "ema", "exp_avg", "exp_avg_sq"}
    policy = facts["sets"]["policy"]
    assert policy["bytes"] == 4 * policy["elements"] and policy["tensors"] == 46
    there = open_checkpoint(str(run)).folder
    for file in facts["files"]:
        assert (there / file["name"]).stat().st_size == file["bytes"]
    assert [other["iteration"] for other in facts["others"]] == [1, 2]


def test_an_iteration_or_a_folder_can_be_named(run):
    for name in (f"{run}@1", run / "checkpoints" / "step-000001"):
        facts = json.loads(inspected(name, "--json").output)
        assert facts["iteration"] == 1 and facts["whole"]


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_broken_file_is_named_and_the_exit_code_is_1(run, harm):
    path = open_checkpoint(str(run)).folder / "rank-001.safetensors"
    if harm == "flip":
        flip_a_bit(path)
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    answer = inspected(run)
    assert answer.exit_code == 1
    assert f"broken: {path}" in answer.output and "every hash" not in answer.output
    facts = json.loads(inspected(run, "--json").output)
    assert not facts["whole"] and len(facts["faults"]) == 1 and str(path) in facts["faults"][0]


@pytest.mark.parametrize("named", ["run", "iteration", "folder"])
def test_a_broken_manifest_is_exit_code_1_too(run, named):
    newest = open_checkpoint(str(run)).folder
    flip_a_bit(newest / MANIFEST)
    name = {"run": run, "iteration": f"{run}@2", "folder": newest}[named]
    answer = inspected(name)
    assert answer.exit_code == 1
    assert "broken:" in answer.output and MANIFEST in answer.output
    assert not json.loads(inspected(name, "--json").output)["whole"]


def test_another_version_or_nothing_there_is_an_error(run, tmp_path):
    newest = open_checkpoint(str(run)).folder
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps(manifest | {"version": 99}))
    for name, message in (
        (run, "format version 99"),
        (f"{run}@7", "committed iterations: 1, 2"),
        (tmp_path / "nowhere", "no checkpoint"),
    ):
        answer = inspected(name)
        assert isinstance(answer.exception, CheckpointError) and message in str(answer.exception)


def test_help_has_an_example():
    for command in ("inspect", "export"):
        answer = CliRunner().invoke(cli.app, [command, "--help"])
        assert answer.exit_code == 0 and "Example:" in answer.output
