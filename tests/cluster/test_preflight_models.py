"""A preflight asks of a run's models what `train` asks: both refuse the same folders."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from adrpo_scale.cluster.preflight.run import SKIPPABLE, PreflightOptions, preflight
from adrpo_scale.core.errors import WeightsError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.run.build import build_trainer
from tests.support.tiny import CONFIGS, MODEL, demo_config, demo_trainer

IMAGE = CONFIGS / "demo" / "image_adrpo.toml"
STEM = "diffusion_pytorch_model"
MODELS = frozenset(SKIPPABLE) - {"models"}


@pytest.fixture
def pipeline(tmp_path):
    return shutil.copytree(resolve_path(MODEL), tmp_path / "m")


def stated(pipeline, run, capsys):
    """(exit code, the check of the models)."""
    settings = [f"domain.model={pipeline}", "prompts.train=demo:image/prompts/train.jsonl"]
    options = PreflightOptions(IMAGE, settings, run, as_json=True, skipped=MODELS)
    code = preflight(options)
    checks = json.loads(capsys.readouterr().out)["checks"]
    return code, next(check for check in checks if check["name"] == "models")


def index_of(folder, file):
    """An index whose one shard is `file`."""
    content = {"metadata": {}, "weight_map": dict.fromkeys(load_file(folder / file), file)}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(content))


def test_two_weights_of_a_component_are_named_by_both(pipeline, tmp_path, capsys):
    for part in ("vae", "transformer"):
        folder = pipeline / part
        shutil.copy(folder / f"{STEM}.safetensors", folder / f"{STEM}-00001-of-00001.safetensors")
        index_of(folder, f"{STEM}-00001-of-00001.safetensors")
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 0 and check["state"] == "fine"
    file = pipeline / "vae" / f"{STEM}-00001-of-00001.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file(tensors | {name: tensors[name] + 1}, file, {"format": "pt"})
    code, check = stated(pipeline, tmp_path / "run", capsys)
    (finding,) = check["findings"]
    message = f"vae has {STEM}.safetensors.index.json and {STEM}.safetensors, which differ"
    assert code == 2 and message in finding["value"] and "the former" in finding["value"]
    config = demo_config(overrides=[f"domain.model={pipeline}"])
    with pytest.raises(WeightsError, match="which differ"):
        build_trainer(config, tmp_path / "run")


def test_of_diffusers_an_index_without_its_shards_is_no_model(pipeline, tmp_path, capsys):
    """diffusers reads an index before a single file, and would not find the shards."""
    index_of(pipeline / "transformer", f"{STEM}.safetensors")
    path = pipeline / "transformer" / f"{STEM}.safetensors.index.json"
    path.write_text(path.read_text().replace(f'"{STEM}.safetensors"', '"gone.safetensors"'))
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 2
    assert "lists gone.safetensors, which is missing" in check["findings"][0]["value"]
    assert f"or delete {path.name}" in check["findings"][0]["value"]


def test_a_cut_file_and_missing_tensors_are_faults(pipeline, tmp_path, capsys):
    file = pipeline / "transformer" / f"{STEM}.safetensors"
    tensors = load_file(file)
    last = max(tensors)
    save_file({n: t for n, t in tensors.items() if n != last}, file, {"format": "pt"})
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 2 and f"1 missing ['{last}']" in check["findings"][0]["value"]
    file.write_bytes(file.read_bytes()[:-9])
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 2 and "is cut off" in check["findings"][0]["value"]


def test_a_run_that_has_begun_is_warned(pipeline, tmp_path, capsys):
    trainer = demo_trainer(tmp_path / "run", demo_config(overrides=[f"domain.model={pipeline}"]))
    trainer.saver.save_now()
    trainer.saver.close()
    capsys.readouterr()  # the run says whether it trains on its held-out prompts
    encoder = pipeline / "text_encoder"
    file = encoder / "model-00001-of-00001.safetensors"
    tensors = load_file(encoder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, {"format": "pt"})
    content = {"metadata": {}, "weight_map": dict.fromkeys(tensors, file.name)}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(content))
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 0 and check["state"] == "warning"
    assert "transformers reads the latter" in check["findings"][0]["value"]
    assert stated(pipeline, tmp_path / "another", capsys)[0] == 2
    for path in encoder.glob("model*"):
        path.unlink()
    code, check = stated(pipeline, tmp_path / "run", capsys)
    assert code == 2 and "text_encoder holds neither" in check["findings"][0]["value"]
