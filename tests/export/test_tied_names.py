"""A base that stores its tied weight under the name of the output layer alone: transformers loads
it by either name, and the export has the name of the base."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from adrpo_scale.export import verify
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.run.build import build_trainer
from tests.support.exported import tensors_of, trained
from tests.support.plain_processes import plain_processes
from tests.support.tiny_text import save_tiny, text_config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA = ["domain.train=lora", "domain.lora.rank=4", "domain.lora.alpha=6"]


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Verification in forks instead of fresh processes."""
    imports = "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    imports += "from transformers.models.qwen3 import modeling_qwen3"
    (tmp_path / "plain").mkdir()
    with plain_processes(tmp_path / "plain", imports) as plain:
        run = lambda command, **_: plain(*command[2:])  # noqa: E731
        monkeypatch.setattr(verify, "subprocess", SimpleNamespace(run=run))
        yield


def train(root, name, settings):
    (root / "runs" / name).mkdir(parents=True)
    config = text_config(root / "base", ["optimizer.learning_rate=1e-2", *settings])
    trainer = build_trainer(config, root / "runs" / name)
    trainer.train()
    trainer.saver.save_now()


@pytest.mark.slow
def test_it_is_exported_in_every_form(tmp_path, checked):
    file = save_tiny(tmp_path / "base") / "model.safetensors"
    renamed = {HEAD if name == EMBEDDING else name: t for name, t in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})
    train(tmp_path, "lora", LORA)
    train(tmp_path, "full", [])
    for run, form in (("lora", "adapter"), ("lora", "merged"), ("full", "full")):
        made = export(str(tmp_path / "runs" / run), Request(tmp_path / form, form))
        assert made.verdict.level == "outputs"
    found = tensors_of(tmp_path / "full")
    assert EMBEDDING not in found
    assert torch.equal(found[HEAD], trained(tmp_path, "full")[EMBEDDING])
    assert json.loads((tmp_path / "full" / "config.json").read_text())["tie_word_embeddings"]
    export(str(tmp_path / "runs/full"), Request(tmp_path / "again", "full", verify="tensors"))
