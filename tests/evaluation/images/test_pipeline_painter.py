"""Pipelines that nobody trained here paint as their own class does from the same latents."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler

from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.seeding import Purpose, normal
from adrpo_scale.evaluation.images.models import PipelineModel
from adrpo_scale.evaluation.images.noise import NOISE, draw_key, first_noise, ids_of
from adrpo_scale.evaluation.images.painters import painter_of
from tests.support.tiny_pipelines import SIZES, quick

CPU = torch.device("cpu")
TEXTS = ["a red ring", "two green triangles", "a red ring"]
KEYS = [draw_key(0, 4, 0), draw_key(0, 9, 0), draw_key(1, 4, 1)]
# Of 255: another batch, or memory of another alignment, adds up in another order, which may tip the
# rounding of a pixel.
LEVELS = 1
STEPS = 2
GUIDANCE = {"flux": 3.5, "sana": 4.5, "sd35": 4.0, "sdxl": 5.0}
CLASSES = {
    "flux": ("FluxPipeline", "FlowMatchEulerDiscreteScheduler"),
    "sana": ("SanaPipeline", "DPMSolverMultistepScheduler"),
    "sd35": ("StableDiffusion3Pipeline", "FlowMatchEulerDiscreteScheduler"),
    "sdxl": ("StableDiffusionXLPipeline", "EulerDiscreteScheduler"),
}
LATENTS = {"flux": [16, 4, 4], "sana": [4, 2, 2], "sd35": [16, 4, 4], "sdxl": [4, 4, 4]}
OWN = {"flux": (28, 3.5, 1024), "sana": (20, 4.5, 1024), "sd35": (28, 7.0, 128)}
OWN["sdxl"] = (50, 5.0, 128)


def model_of(pipelines, kind, **settings):
    given = {"steps": STEPS, "guidance": GUIDANCE[kind], "size": SIZES[kind]}
    return PipelineModel(str(pipelines[kind]), **{**given, **settings})


def ready(model):
    painter = painter_of(model, CPU)
    painter.prepare(TEXTS)
    return painter


def distance(one, other):
    """The largest difference of two pictures, in levels."""
    return np.abs(one.astype(int) - other).max()


def by_hand(folder, kind, latents, **more):
    """The pictures of the pipeline's own call."""
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if kind == "sana":
        more["use_resolution_binning"] = False
    size = {"height": SIZES[kind], "width": SIZES[kind]}
    images = pipeline(
        prompt=TEXTS,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE[kind],
        latents=latents,
        **size,
        **more,
    ).images
    return [np.asarray(image) for image in images]


def packed(noise):
    """FLUX's form of latents, written out: [N, (H/2)(W/2), 4C], a patch's channels first."""
    n, c, h, w = noise.shape
    rows = noise.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return rows.reshape(n, (h // 2) * (w // 2), 4 * c)


@pytest.mark.parametrize("kind", quick("flux", "sdxl"))
def test_a_pipeline_paints_what_its_own_call_makes_of_the_same_latents(pipelines, kind):
    noise = normal(NOISE, ids_of(KEYS), Purpose.EVALUATION, LATENTS[kind])
    latents = packed(noise) if kind == "flux" else noise
    painter = ready(model_of(pipelines, kind))
    pictures = painter.paint(TEXTS, KEYS)
    for one, other in zip(pictures, by_hand(pipelines[kind], kind, latents), strict=True):
        assert one.dtype == np.uint8 and one.shape == (SIZES[kind], SIZES[kind], 3)
        assert distance(one, other) <= LEVELS
    for text, key, expected in zip(TEXTS, KEYS, pictures, strict=True):
        (alone,) = painter.paint([text], [key])
        assert distance(alone, expected) <= LEVELS
    (other_prompt,) = painter.paint(TEXTS[1:2], KEYS[:1])
    changes = [distance(picture, pictures[0]) for picture in (other_prompt, pictures[2])]
    assert min(changes) > 10 * LEVELS  # by the prompt alone, and by the noise alone
    painter.close()


@pytest.mark.parametrize("kind", SIZES)
def test_a_pipeline_has_its_own_settings_until_others_are_named(pipelines, kind):
    own = painter_of(PipelineModel(str(pipelines[kind])), CPU).identity
    steps, guidance, size = OWN[kind]
    assert (own["class"], own["scheduler"]) == CLASSES[kind]
    assert (own["steps"], own["guidance"]) == (steps, guidance)
    assert (own["height"], own["width"], own["dtype"]) == (size, size, "float32")
    assert own["revision"] is None and len(own["sha256"]) == 64 and own["lora"] is None
    assert json.loads(json.dumps(own)) == own
    named = painter_of(model_of(pipelines, kind, dtype="bfloat16"), CPU).identity
    assert (named["steps"], named["guidance"]) == (STEPS, GUIDANCE[kind])
    assert (named["height"], named["dtype"]) == (SIZES[kind], "bfloat16")
    assert named["latent_shape"] == LATENTS[kind]


@pytest.mark.parametrize("kind", quick("sdxl"))
def test_a_pipeline_paints_in_half_precision_about_the_same(pipelines, kind):
    pair = []
    for dtype in ("float32", "bfloat16"):
        painter = ready(model_of(pipelines, kind, dtype=dtype))
        assert next(painter._pipeline.vae.parameters()).dtype == getattr(torch, dtype)
        pair.append(painter.paint(TEXTS[:1], KEYS[:1])[0].astype(float))
    changes = np.abs(pair[0] - pair[1])
    assert 0 < changes.mean() < pair[0].std() / 3


def test_models_of_one_latent_shape_begin_with_the_same_noise(pipelines):
    shapes = [painter_of(model_of(pipelines, k), CPU).identity["latent_shape"] for k in LATENTS]
    assert shapes[0] == shapes[2] == [16, 4, 4]  # FLUX.1 and SD3.5
    noise = first_noise(KEYS, shapes[0])
    assert torch.equal(packed(noise)[:, 0, :4], noise[:, 0, :2, :2].reshape(3, 4))


def test_a_scheduler_that_draws_later_draws_for_each_sample_alone(pipelines, tmp_path):
    shutil.copytree(pipelines["sdxl"], tmp_path / "sdxl")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "sdxl")
    EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config).save_pretrained(
        tmp_path / "sdxl" / "scheduler"
    )
    index = json.loads((tmp_path / "sdxl" / "model_index.json").read_text())
    index["scheduler"][1] = "EulerAncestralDiscreteScheduler"
    (tmp_path / "sdxl" / "model_index.json").write_text(json.dumps(index))
    painter = ready(model_of({"sdxl": tmp_path / "sdxl"}, "sdxl"))
    together = painter.paint(TEXTS, KEYS)
    for text, key, expected in reversed([*zip(TEXTS, KEYS, together, strict=True)]):
        (alone,) = painter.paint([text], [key])
        assert distance(alone, expected) <= LEVELS


@pytest.mark.slow
def test_draws_from_the_global_state_make_samples_one_by_one(pipelines, tmp_path):
    shutil.copytree(pipelines["flux"], tmp_path / "flux")
    file = tmp_path / "flux" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stochastic_sampling": True}))
    painter = ready(model_of({"flux": tmp_path / "flux"}, "flux"))
    state = torch.get_rng_state()
    together = painter.paint(TEXTS, KEYS)
    assert torch.equal(torch.get_rng_state(), state)
    fresh = ready(model_of({"flux": tmp_path / "flux"}, "flux"))
    for text, key, expected in reversed([*zip(TEXTS, KEYS, together, strict=True)]):
        assert distance(fresh.paint([text], [key])[0], expected) <= LEVELS


def test_an_encoder_is_left_out_where_the_pipeline_allows_it(pipelines):
    whole, less = (
        ready(model_of(pipelines, "sd35", without=without))
        for without in ((), ("text_encoder_3", "tokenizer_3"))
    )
    assert less.identity == whole.identity | {"without": ["text_encoder_3", "tokenizer_3"]}
    pair = [painter.paint(TEXTS[:1], KEYS[:1])[0] for painter in (whole, less)]
    assert distance(*pair) > 10 * LEVELS
    with pytest.raises(ConfigError, match=r"StableDiffusion3Pipeline has no t5; it has .*vae"):
        painter_of(model_of(pipelines, "sd35", without=["t5"]), CPU)


# ---- what is refused before anything heavy -------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        ("flux", 40, r"size = 40: FluxPipeline paints multiples of 16 .*nearest is 32"),
        ("sana", 48, r"size = 48: SanaPipeline paints multiples of 32 .*nearest is 64"),
        ("sd35", 144, r"size = 144: .* multiples of 16 pixels here up to 128"),
        ("sdxl", 30, r"size = 30: .* multiples of 8 .*nearest is 32"),
    ],
)
def test_a_size_that_the_latents_cannot_have_is_refused(pipelines, kind, size, said):
    with pytest.raises(ConfigError, match=said):
        painter_of(model_of(pipelines, kind, size=size), CPU)


def test_what_is_no_pipeline_is_refused(pipelines, tmp_path):
    with pytest.raises(ConfigError, match=r"has no model_index.json; expected a diffusers"):
        painter_of(PipelineModel(str(tmp_path)), CPU)
    with pytest.raises(ModelNotFoundError, match="folder"):
        painter_of(PipelineModel(str(tmp_path / "absent")), CPU)
    shutil.copytree(pipelines["flux"], tmp_path / "flux")
    file = tmp_path / "flux" / "model_index.json"
    index = json.loads(file.read_text())
    for name, said in [
        ("FluxPipelines", "names the class 'FluxPipelines'.* nearest that it has is FluxPipeline"),
        (["pipeline", "Mine"], "Code that comes with a model is never run here"),
        ("DDPMPipeline", "DDPMPipeline takes no prompt"),
    ]:
        file.write_text(json.dumps(index | {"_class_name": name}))
        with pytest.raises(ConfigError, match=said):
            painter_of(PipelineModel(str(tmp_path / "flux")), CPU)
    file.write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderOfTomorrow"]}))
    with pytest.raises(ConfigError, match="vae is a AutoencoderOfTomorrow, which diffusers"):
        painter_of(PipelineModel(str(tmp_path / "flux")), CPU)


def test_settings_that_a_pipeline_does_not_take_are_refused(pipelines):
    with pytest.raises(ConfigError, match="StableDiffusionXLPipeline takes no max_sequence_length"):
        painter_of(model_of(pipelines, "sdxl", max_sequence_length=12), CPU)
    with pytest.raises(ConfigError, match="dtype = 'half': expected one of float32, bfloat16"):
        painter_of(model_of(pipelines, "sdxl", dtype="half"), CPU)
    with pytest.raises(ConfigError, match="revision = 'main': expected the 40 hexadecimal digits"):
        painter_of(model_of(pipelines, "sdxl", revision="main"), CPU)


def test_weights_that_are_pickles_are_never_opened(pipelines, tmp_path):
    shutil.copytree(pipelines["sdxl"], tmp_path / "sdxl")
    for part, name in [("text_encoder_2", "model"), ("unet", "diffusion_pytorch_model")]:
        file = tmp_path / "sdxl" / part / f"{name}.safetensors"
        file.rename(file.with_name("pytorch_model.bin"))
        with pytest.raises(ModelNotFoundError, match=rf"{part} holds neither {name}.safetensors"):
            painter_of(PipelineModel(str(tmp_path / "sdxl")), CPU)
        file.with_name("pytorch_model.bin").rename(file)
