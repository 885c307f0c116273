"""Exports of forks, what a card tells, and the parts that an exporter is made of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from typer.testing import CliRunner

from adrpo_scale.checkpoint.locate import ORIGIN, open_checkpoint, pin_origin
from adrpo_scale.checkpoint.shelf import hash_part
from adrpo_scale.cli import main as cli
from adrpo_scale.core.errors import ExportError
from adrpo_scale.export.base import Request, base_of
from adrpo_scale.export.copies import is_path, without_paths
from adrpo_scale.export.diffusers_layout import LORA_FILE
from adrpo_scale.export.exporter import export
from adrpo_scale.hub.weights import SafetensorsFolder
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.resume import Start
from tests.support.exported_pictures import SECRET, quick, tensors_of, trained
from tests.support.ranks import FORKSERVER_ENV, run_ranks
from tests.support.shared import CACHE
from tests.support.tiny import demo_config

# ---- forks ---------------------------------------------------------------------------------------


def make_fork(rank, world, root):
    """A run on a reference that was rebased on the run `lora`."""
    origin, run = open_checkpoint(str(root / "runs/lora")), root / "runs/fork"
    overrides = [f"init_from={root / 'runs/lora'}", "rebase_reference=true"]
    overrides += [f"domain.model={root / 'base-model'}", "optimizer.learning_rate=1e-2"]
    run.mkdir()
    pin_origin(str(origin.folder), run / ORIGIN, lambda reader: [hash_part(reader)])
    os.environ["ADRPO_CACHE"] = str(CACHE)
    trainer = build_trainer(demo_config(overrides=overrides), run, Start(origin=origin))
    trainer.train()
    trainer.saver.save_now()


def test_a_rebased_fork_is_merged_on_what_it_started_from(root, tmp_path, without_the_process):
    run_ranks(make_fork, 1, root)
    with pytest.raises(ExportError, match="reference was rebased"):
        quick(root, "fork", tmp_path / "a", "adapter")
    exported = quick(root, "fork", tmp_path / "a", "merged", verify="tensors", dtype=torch.float32)
    name = "transformer_blocks.0.attn.to_q"
    first, second = trained(root), trained(root, "fork")
    products = [
        scaling * (t[f"{name}.lora_B.default.weight"] @ t[f"{name}.lora_A.default.weight"])
        for t, scaling in ((first, 40 / 16), (second, 1))
    ]
    expected = tensors_of(root / "base-model")[f"{name}.weight"] + sum(products)
    found = tensors_of(exported.folder)[f"{name}.weight"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    card = (exported.folder / "README.md").read_text()
    assert "started from iteration 2 of lora" in card


# ---- what an export tells ------------------------------------------------------------------------


def test_no_export_tells_paths_hosts_or_users(root, exports):
    secrets = {SECRET, str(root), str(Path.home()), "node-17", "quota_command", os.uname().nodename}
    told = [secret.encode() for secret in secrets if len(secret) > 3 and secret != "/root"]
    for exported in exports.values():
        for path in exported.folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else path.name.encode()
            assert not [secret for secret in told if secret in data], path
            if path.suffix in (".json", ".md"):
                assert not re.search(rb"[\s\"'`(=]/(home|tmp|root|scratch|usr|mnt)/", data), path


def test_the_card_says_what_it_is_and_where_it_comes_from(root, exports):
    document = open_checkpoint(str(root / "runs/lora")).manifest.document
    for form, exported in exports.items():
        card = ModelCard.load(exported.folder / "README.md")
        assert card.data.license == "other" and card.data.license_name == "demo-terms"
        assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "text-to-image"
        assert card.data.base_model is None  # a folder's name is no id of the hub
        for text in ("`base-model`", document["base"]["sha256"], "seed: 0", "algorithm: adrpo"):
            assert text in card.text, (form, text)
        assert 'prompts.train = "prompts.jsonl"' in card.text
        assert "off by" in card.text and "| clip |" in card.text
    adapter_card = (exports["adapter"].folder / "README.md").read_text()
    assert "| reward | held_out |" in adapter_card and "iteration 2 |" in adapter_card
    assert "There was no evaluation" in (exports["full"].folder / "README.md").read_text()


def test_a_checkpoint_without_its_run_can_be_exported(root, tmp_path):
    alone = tmp_path / "somewhere" / "step"
    shutil.copytree(open_checkpoint(str(root / "runs/lora")).folder, alone)
    place = export(str(alone), Request(tmp_path / "a", "adapter", verify="none")).folder
    assert "There was no evaluation" in (place / "README.md").read_text()
    assert "It was not verified" in (place / "README.md").read_text()


RUNNER = """
import os, sys
from pathlib import Path

for folder in sys.argv[1:]:
    os.chdir(folder)
    for block in Path("README.md").read_text().split("```python\\n")[1:]:
        exec(compile(block.split("```")[0], folder, "exec"), {})
    assert Path("sample.png").is_file()
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
"""


def test_the_cards_usage_examples_run_as_they_stand(root, exports, tmp_path):
    places = [shutil.copytree(e.folder, tmp_path / form) for form, e in exports.items()]
    # The base has no id of the hub, so the example says its folder's name.
    (tmp_path / "adapter" / "base-model").symlink_to(root / "base-model")
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUNNER, *places],
        env=os.environ | FORKSERVER_ENV,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for place in places:
        assert Image.open(place / "sample.png").size == (20, 20)


@pytest.mark.parametrize(
    ("model", "revision", "name", "is_hub_id"),
    [
        ("stabilityai/stable-diffusion-3-medium-diffusers", "f" * 40, None, True),
        ("models/sd3", None, "sd3", False),
        ("/scratch/ada/sd3/", None, "sd3", False),
        ("/home/ada/hub/models--org--sd3/snapshots/ff", "ff", "org/sd3", True),
        ("demo:image", None, "demo:image", False),
    ],
)
def test_a_base_model_is_named_without_its_path(model, revision, name, is_hub_id):
    found = base_of(model, revision, "0" * 64)
    assert (found.name, found.is_hub_id) == (name or model, is_hub_id)


def test_paths_are_told_from_other_strings():
    for text in ("/home/ada/x", "~/models", "C:\\Users\\ada", "../ada/x"):
        assert is_path(text), text
    for text in ("image/png", "/", "a red ring", "https://a/b", "stabilityai/sd3", "</s>", "5/8"):
        assert not is_path(text), text
    before = {"a": ["/home/ada/x", 1], "b": {"c": "/data/ada/model.bin", "d": None}}
    assert without_paths(before) == {"a": ["x", 1], "b": {"c": "model.bin", "d": None}}


# ---- parts ---------------------------------------------------------------------------------------


def test_headers_tell_shape_and_type_without_reading(root):
    stored = SafetensorsFolder(root / "base-model" / "transformer", "diffusion_pytorch_model")
    for name, tensor in tensors_of(root / "base-model").items():
        assert (stored.shape(name), stored.dtype(name)) == (tuple(tensor.shape), tensor.dtype)


def test_the_command_exports_and_says_what_it_did(root, tmp_path):
    line = ["export", str(root / "runs/lora"), "--to", str(tmp_path / "a"), "--as", "adapter"]
    answer = CliRunner().invoke(cli.app, [*line, "--verify", "none"])
    assert answer.exit_code == 0, answer.output
    for text in ("trained tensors differ", "not verified", f"export: {tmp_path / 'a'}"):
        assert text in answer.output
    assert (tmp_path / "a" / LORA_FILE).is_file()
    refused = CliRunner().invoke(cli.app, line)
    assert isinstance(refused.exception, ExportError)
