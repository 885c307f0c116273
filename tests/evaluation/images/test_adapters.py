"""A LoRA on a published pipeline: what it adds, and that one which matches nothing is refused."""

from __future__ import annotations

import json

import numpy as np
import peft
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

from adrpo_scale.core.errors import ConfigError, WeightsError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.evaluation.images.models import PipelineModel
from adrpo_scale.evaluation.images.noise import draw_key
from adrpo_scale.evaluation.images.painters import painter_of
from adrpo_scale.export.base import Request
from adrpo_scale.export.exporter import export
from tests.support.shared import CACHE
from tests.support.tiny import MODEL, demo_config, demo_trainer
from tests.support.tiny_pipelines import SIZES, quick

CPU = torch.device("cpu")
TEXT, KEY = "a red ring", draw_key(0, 4, 0)
RANK, ALPHA = 2, 6.0
BODY = {"flux": "transformer", "sana": "transformer", "sd35": "transformer", "sdxl": "unet"}
TARGETS = ("to_q", "to_v", "to_out.0")
LEVELS = 2  # of 255: W x + B A x against (W + B A) x, over two steps and the VAE


def paint(folder, kind, lora=None):
    model = PipelineModel(
        str(folder), lora=None if lora is None else str(lora), steps=2, size=SIZES.get(kind)
    )
    painter = painter_of(model, CPU)
    painter.prepare([TEXT])
    (picture,) = painter.paint([TEXT], [KEY])
    return picture.astype(int), painter.identity


def adapters(pipeline, kind):
    """Tensors of a LoRA by their names in the model; every attention layer of TARGETS has one."""
    random, tensors = torch.Generator().manual_seed(3), {}
    for name, module in getattr(pipeline, BODY[kind]).named_modules():
        if name.endswith(TARGETS) and isinstance(module, torch.nn.Linear):
            shapes = {"A": (RANK, module.in_features), "B": (module.out_features, RANK)}
            for side, shape in shapes.items():
                tensors[f"{name}.lora_{side}.weight"] = torch.randn(shape, generator=random) / 3
    return tensors


def settings():
    return {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS)}


def save_for_diffusers(pipeline, kind, tensors, to):
    names = {"layers": f"{BODY[kind]}_lora_layers", "rule": f"{BODY[kind]}_lora_adapter_metadata"}
    pipeline.save_lora_weights(to, **{names["layers"]: tensors, names["rule"]: settings()})


def save_for_peft(tensors, to):
    peft.LoraConfig(**settings()).save_pretrained(str(to))
    named = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, to / "adapter_model.safetensors")


def merged(pipeline, kind, tensors, to):
    """The pipeline with W + (alpha / r)·B·A in place of each W."""
    model = getattr(pipeline, BODY[kind])
    with torch.no_grad():
        for name in {name.partition(".lora_")[0] for name in tensors}:
            a, b = (tensors[f"{name}.lora_{side}.weight"] for side in "AB")
            model.get_submodule(name).weight += ALPHA / RANK * b @ a
    pipeline.save_pretrained(to, safe_serialization=True)


@pytest.mark.parametrize("kind", quick("flux"))
def test_a_lora_adds_its_product_to_the_base(pipelines, tmp_path, kind):
    pipeline = DiffusionPipeline.from_pretrained(pipelines[kind], dtype=torch.float32)
    tensors = adapters(pipeline, kind)
    save_for_diffusers(pipeline, kind, tensors, tmp_path / "lora")
    save_for_peft(tensors, tmp_path / "peft")
    merged(pipeline, kind, tensors, tmp_path / "merged")
    expected, _ = paint(tmp_path / "merged", kind)
    for layout in ("lora", "peft"):
        picture, identity = paint(pipelines[kind], kind, tmp_path / layout)
        assert np.abs(picture - expected).max() <= LEVELS
        assert identity["lora"]["name"] == str(tmp_path / layout)
        assert len(identity["lora"]["sha256"]) == 64
    assert np.abs(paint(pipelines[kind], kind)[0] - expected).max() > 10 * LEVELS


# ---- what is refused before weights are read -----------------------------------------------------


def refused(pipelines, kind, lora, error, said):
    with pytest.raises(error, match=said):
        painter_of(PipelineModel(str(pipelines[kind]), lora=str(lora), size=SIZES[kind]), CPU)


def write(to, tensors):
    to.mkdir(exist_ok=True)
    save_file(tensors, to / "pytorch_lora_weights.safetensors")


def test_a_lora_of_another_model_is_refused(pipelines, tmp_path):
    pipeline = DiffusionPipeline.from_pretrained(pipelines["flux"])
    tensors = adapters(pipeline, "flux")
    save_for_diffusers(pipeline, "flux", tensors, tmp_path / "flux")
    said = r"has no adapters of the unet \(UNet2DConditionModel\).* holds transformer\."
    refused(pipelines, "sdxl", tmp_path / "flux", WeightsError, said)
    said = r"12 of 12 layers are not in SD3Transformer2DModel|layers are not in SD3Transformer2DM"
    refused(pipelines, "sd35", tmp_path / "flux", WeightsError, said)
    name = "transformer_blocks.0.attn.to_q"
    wide = {f"transformer.{name}.lora_A.weight": torch.zeros(RANK, 48)}
    wide[f"transformer.{name}.lora_B.weight"] = torch.zeros(32, RANK)
    write(tmp_path / "wide", wide)
    said = r"lora_A.weight has 48 inputs, and the layer of this model 32; name a LoRA"
    refused(pipelines, "flux", tmp_path / "wide", WeightsError, said)
    write(tmp_path / "bare", {f"{name}.lora_A.weight": torch.zeros(RANK, 32)})
    said = r"has no adapters of the transformer .* it holds transformer_blocks"
    refused(pipelines, "sd35", tmp_path / "bare", WeightsError, said)


def test_a_folder_without_one_lora_is_refused(pipelines, tmp_path):
    refused(pipelines, "flux", tmp_path, ConfigError, "holds no safetensors; expected pytorch_lora")
    for name in ("one", "two"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    said = "holds one.safetensors, two.safetensors; expected .*: name the file itself"
    refused(pipelines, "flux", tmp_path, ConfigError, said)
    said = "one.safetensors has no adapters of the transformer .* holds a first"
    refused(pipelines, "sd35", tmp_path / "one.safetensors", WeightsError, said)


def test_adapters_that_peft_would_compute_otherwise_are_refused(pipelines, tmp_path):
    layer = "transformer_blocks.0.attn.to_q.lora_A.weight"
    save_for_peft({layer: torch.zeros(2, 32)}, tmp_path)
    file = tmp_path / "adapter_config.json"
    stated = json.loads(file.read_text())
    for changed, said in [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'; expected LORA"),
        ({"use_tomorrow": 1}, "use_tomorrow = 1, which the installed peft does not know"),
    ]:
        file.write_text(json.dumps(stated | changed))
        refused(pipelines, "flux", tmp_path, WeightsError, said)


# ---- what `export` writes ------------------------------------------------------------------------


@pytest.mark.slow
def test_an_export_paints_merged_as_with_its_adapters_on_the_base(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_CACHE", str(CACHE))
    trainer = demo_trainer(tmp_path / "run", demo_config(overrides=["domain.lora.alpha=40"]))
    random = torch.Generator().manual_seed(1)
    for tensor in trainer.engine.trained_slices().values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=random)
    trainer.engine.publish()
    trainer.saver.save_now()
    for form in ("adapter", "merged"):
        export(
            str(tmp_path / "run"),
            Request(tmp_path / form, form, dtype=torch.float32, verify="none"),
        )
    base = resolve_path(MODEL)
    expected, identity = paint(tmp_path / "merged", "demo")
    assert identity["class"] == "StableDiffusion3Pipeline" and identity["height"] == 20
    picture, _ = paint(base, "demo", tmp_path / "adapter")
    assert np.abs(picture - expected).max() <= LEVELS
    assert np.abs(paint(base, "demo")[0] - expected).max() > 10 * LEVELS
