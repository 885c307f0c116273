"""Exports of a thinker that are wrong or cannot be made, and what an export tells."""

from __future__ import annotations

from types import SimpleNamespace

import huggingface_hub
import pytest

from adrpo_scale.cluster.preflight.estimate import trained_elements
from adrpo_scale.domains.omni import SPEAKERS
from adrpo_scale.evaluation.sample import stands_for
from adrpo_scale.export import folder, transformers_layout
from adrpo_scale.export import omni_layout as hearing_layout
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from adrpo_scale.export.stored import StoredTensors
from adrpo_scale.run.build import build_trainer
from tests.support.exported import refused, trained
from tests.support.exported_thinkers import FULL, LORA, SECRET
from tests.support.tiny_audio import audio_config
from tests.support.tiny_text import save_tiny, text_config

# ---- refused -------------------------------------------------------------------------------------


def test_a_whole_needs_the_rest_of_it(root, tmp_path):
    message = "thinker holds no other part than --as merged exports: .* the complete model"
    refused(root, "alone", tmp_path / "a", "whole", message)
    (root / "full" / SPEAKERS).rename(root / "speakers")
    try:
        refused(root, "lora", tmp_path / "a", "whole", f"full lacks {SPEAKERS}, without which")
        export(str(root / "runs/lora"), Request(tmp_path / "b", "merged", verify="none"))
    finally:
        (root / "speakers").rename(root / "full" / SPEAKERS)


def test_a_language_model_is_no_part(tmp_path):
    save_tiny(tmp_path / "text")
    (tmp_path / "runs" / "text").mkdir(parents=True)
    trainer = build_trainer(text_config(tmp_path / "text"), tmp_path / "runs" / "text")
    trainer.saver.save_now()
    refused(tmp_path, "text", tmp_path / "a", "whole", "holds no other part than --as full")


def test_what_training_has_not_changed_is_refused(root, tmp_path):
    for form in ("adapter", "merged", "whole"):
        refused(root, "untrained", tmp_path / "a", form, "none of the 14 trained tensors")
    refused(root, "all", tmp_path / "a", "merged", "use --as full")


# ---- a wrong export does not get through ---------------------------------------------------------


@pytest.mark.parametrize("part", ["visual", "token2wav"])
def test_a_changed_copy_is_found(root, tmp_path, monkeypatch, checked, part):
    """Of parts that none of the outputs depends on."""
    honest, done = StoredTensors.read, []

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        is_first = part in name and stop is None and not done
        done.extend([name] * is_first)
        return tensor + 0.01 if is_first else tensor

    monkeypatch.setattr(StoredTensors, "read", wrong)
    refused(root, "lora", tmp_path / "a", "whole", part, verify="tensors")
    assert done


def test_another_tower_is_heard(root, tmp_path, monkeypatch, checked):
    """Before a byte is compared: the outputs are of a clip that went through it."""
    honest = StoredTensors.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return 1.1 * tensor if name.endswith("audio_tower.proj.weight") else tensor

    monkeypatch.setattr(StoredTensors, "read", wrong)
    refused(root, "lora", tmp_path / "a", "merged", "not the policy: outputs", verify="outputs")


def test_a_wrong_merge_is_found(root, tmp_path, monkeypatch, checked):
    honest = folder.MergedWeights.read

    def wrong(self, name, start=0, stop=None):
        tensor = honest(self, name, start, stop)
        return tensor * 1.01 if name.endswith("0.self_attn.v_proj.weight") else tensor

    monkeypatch.setattr(folder.MergedWeights, "read", wrong)
    refused(root, "lora", tmp_path / "a", "whole", "not the policy: outputs", verify="outputs")
    refused(root, "lora", tmp_path / "a", "whole", r"v_proj\.weight is off by", verify="tensors")


@pytest.mark.parametrize("level", ["outputs", "tensors"])
def test_what_the_folder_lacks_is_found(root, tmp_path, monkeypatch, checked, level):
    """transformers makes up what is not there, with no more than a warning."""
    honest = StoredTensors.names
    lost = {"thinker.visual.merger.ln_q.weight", "talker.codec_head.weight"}
    monkeypatch.setattr(StoredTensors, "names", lambda self: honest(self) - lost)
    refused(root, "lora", tmp_path / "a", "whole", "missing", verify=level)


def test_another_voice_or_template_is_found(root, tmp_path, monkeypatch, checked):
    honest = hearing_layout.HearingLayout.copies

    def other(self, material, form):
        found = honest(self, material, form)
        (tmp_path / "other").write_bytes(b"another voice")
        return [
            type(copy)(tmp_path / "other", copy.name) if copy.name == SPEAKERS else copy
            for copy in found
        ]

    with monkeypatch.context() as patch:
        patch.setattr(hearing_layout.HearingLayout, "copies", other)
        message = f"{SPEAKERS} differs from the base model's"
        refused(root, "lora", tmp_path / "a", "whole", message, verify="tensors")
    monkeypatch.setattr(transformers_layout, "tokenizer_texts", lambda material, names_class: {})
    refused(root, "chat", tmp_path / "a", "adapter", "cannot be used|encodes", verify="tensors")


# ---- what an export tells ------------------------------------------------------------------------


def test_no_export_tells_paths(root, exports):
    for exported in exports.values():
        for path in (p for p in exported.folder.rglob("*") if p.is_file()):
            data = path.read_bytes()
            assert SECRET.encode() not in data and str(root).encode() not in data, path


RUNNER = """
import os, sys
from pathlib import Path

for folder in sys.argv[1:]:
    os.chdir(folder)
    (block,) = Path("README.md").read_text().split("```python\\n")[1:]
    exec(compile(block.split("```")[0], folder, "exec"), {})
assert not [name for name in sys.modules if name.split(".")[0] == "adrpo_scale"]
"""


def test_the_cards_usage_examples_run_as_they_stand(root, exports, plain, tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER)
    # The base has no id of the hub, so the example says its folder's name.
    link = exports["adapter"].folder / "full"
    link.symlink_to(root / "full")
    try:
        names = ("adapter", "merged_alone", "whole")
        done = plain(tmp_path / "runner.py", *(exports[name].folder for name in names))
    finally:
        link.unlink()
    assert done.returncode == 0, done.stderr


# ---- neighbours ----------------------------------------------------------------------------------


def test_a_model_on_the_hub_is_told_by_its_type(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda repo, name: False)
    for model_type, domain in (("qwen2_5_omni", "audio"), ("qwen3", "text"), (None, "text")):
        stated = SimpleNamespace(config={"model_type": model_type})
        monkeypatch.setattr(huggingface_hub, "model_info", lambda repo, stated=stated: stated)
        assert stands_for("nobody/nothing") == domain


@pytest.mark.parametrize(("base", "settings"), [("full", LORA), ("full", FULL), ("thinker", FULL)])
def test_the_room_of_checkpoints_is_estimated(root, base, settings):
    run = {"full": "lora", "thinker": "all"}[base] if settings is LORA else "all"
    config = audio_config(root / base, settings)
    (root / base / "prompts.jsonl").unlink()
    elements = sum(tensor.numel() for tensor in trained(root, run).values())
    assert trained_elements(config) == elements
