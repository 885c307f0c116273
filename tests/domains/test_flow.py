"""Flow matching against diffusers' own pipeline and scheduler, and against formulas by hand."""

from __future__ import annotations

import copy
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from adrpo_scale.algorithms.old_error_terms import OldErrorTerms
from adrpo_scale.algorithms.terms import RegressionTerms
from adrpo_scale.core.errors import ConfigError, ModelNotFoundError
from adrpo_scale.core.seeding import Purpose, normal, uniform
from adrpo_scale.core.types import DrawKey, Prompt, Rows
from adrpo_scale.domains.embeddings import cache_folder, encoder_fingerprint, load_embeddings
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.domains.solver import solver_times
from adrpo_scale.hub.weights import find_model
from tests.support.closeness import NEAR, assert_near
from tests.support.ranks import run_ranks
from tests.support.tiny import MODEL, demo_config

CPU = torch.device("cpu")
PROMPTS = [Prompt(4, "a red ring"), Prompt(9, "two green triangles"), Prompt(2, "a blue square")]
STEPS = 5


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ADRPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build_domain(*settings):
    config = demo_config(overrides=[f"domain.rollout.steps={STEPS}", *settings])
    domain = FlowDomain(config.domain)
    domain.prepare(PROMPTS, CPU, torch.float32)
    return domain


def transformer():
    model = SD3Transformer2DModel.from_pretrained(find_model(MODEL) / "transformer")
    return model.eval().requires_grad_(False)


def perturbed(model):
    """A policy that has moved away from `model`."""
    policy = copy.deepcopy(model).requires_grad_(True)
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    return policy


def pipeline(t5):
    without = {} if t5 else {"text_encoder_3": None, "tokenizer_3": None}
    found = StableDiffusion3Pipeline.from_pretrained(
        find_model(MODEL), dtype=torch.float32, **without
    )
    found.set_progress_bar_config(disable=True)
    return found


# ---- solver and rollout ----------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 8, 28])
def test_solver_times_are_those_of_diffusers_with_sigmas_given(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    times = solver_times(steps, shift)
    torch.testing.assert_close((1 - times).float(), scheduler.sigmas, rtol=0, atol=1e-6)
    assert times[0] == 0 and times[-1] == 1 and (times.diff() > 0).all()


@pytest.mark.parametrize(("guidance", "t5"), [(1.0, False), (4.5, False), (4.5, True)])
def test_a_rollout_is_what_diffusers_pipeline_makes_of_the_same_noise(cache, guidance, t5):
    domain = build_domain(f"domain.rollout.guidance={guidance}", f"domain.t5={str(t5).lower()}")
    key, ids = DrawKey(seed=1, iteration=2), torch.tensor([7, 8, 11])
    rows = domain.sample(transformer(), PROMPTS, ids, key)
    assert rows.prompt_ids_N.tolist() == [4, 9, 2] and rows.sample_ids_N.tolist() == [7, 8, 11]
    expected = pipeline(t5)(
        prompt=[prompt.text for prompt in PROMPTS],
        negative_prompt=[""] * len(PROMPTS),
        height=20,
        width=20,
        sigmas=[1 - i / STEPS for i in range(STEPS)],
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=normal(key, ids.tolist(), Purpose.ROLLOUT_NOISE, domain.latent_shape),
        max_sequence_length=domain.config.max_sequence_length,
        output_type="latent",
    ).images
    # Each step is a pass of the network over what the last one made.
    assert (rows.tensors["x1"] - expected).norm() < STEPS * NEAR * expected.norm()


def test_samples_depend_on_key_and_id_and_not_on_their_neighbours(cache):
    domain, model, ids = build_domain(), transformer(), torch.tensor([0, 1, 2])
    key = DrawKey(seed=0, iteration=0)
    together = domain.sample(model, PROMPTS, ids, key).tensors["x1"]
    alone = domain.sample(model, PROMPTS[1:2], ids[1:2], key).tensors["x1"]
    assert_near(together[1:2], alone)
    for other in (
        domain.sample(model, PROMPTS, ids, DrawKey(seed=0, iteration=1)),
        domain.sample(model, PROMPTS, ids + 3, key),
        domain.sample(model, PROMPTS, ids, key, "evaluation"),
    ):
        assert not torch.allclose(other.tensors["x1"], together, atol=1e-2)


def test_no_samples_are_rows_of_the_same_shape_and_no_pictures(cache):
    domain = build_domain("domain.noise=rollout")
    rows = domain.sample(transformer(), [], torch.empty(0, dtype=torch.int64), DrawKey(0, 0))
    assert {name: tuple(tensor.shape) for name, tensor in rows.tensors.items()} == {
        "x1": (0, *domain.latent_shape),
        "x0": (0, *domain.latent_shape),
    }
    assert domain.artifacts(rows) == []


def test_artifacts_are_the_pipelines_pictures(cache):
    domain = build_domain("domain.decode_chunk=2")
    rows = domain.sample(transformer(), PROMPTS, torch.arange(3), DrawKey(0, 0))
    decoder = pipeline(t5=False)
    latents = rows.tensors["x1"] / decoder.vae.config.scaling_factor
    decoded = decoder.vae.decode(latents + decoder.vae.config.shift_factor).sample.detach()
    expected = (decoder.image_processor.postprocess(decoded, output_type="np") * 255).round()
    for picture, other in zip(domain.artifacts(rows), expected, strict=True):
        assert picture.dtype.name == "uint8" and picture.shape == (20, 20, 3)
        assert abs(picture - other).max() <= 1


# ---- terms -----------------------------------------------------------------------------------


def rows_of(domain, sample_ids, prompts):
    random = torch.Generator().manual_seed(0)
    x1 = torch.randn(len(sample_ids), *domain.latent_shape, generator=random)
    ids = torch.tensor([prompt.id for prompt in prompts])
    return Rows(torch.tensor(sample_ids), ids, {"x1": x1, "x0": torch.zeros_like(x1)})


def velocity_by_hand(model, prompts, x_t, t):
    encoder = pipeline(t5=False)
    sequence, _, pooled, _ = encoder.encode_prompt(
        prompt=[prompt.text for prompt in prompts],
        prompt_2=None,
        prompt_3=None,
        do_classifier_free_guidance=False,
        max_sequence_length=demo_config().domain.max_sequence_length,
    )
    return -model(x_t, sequence, pooled, timestep=1000 * (1 - t), return_dict=False)[0]


def terms(domain, policy, reference, rows, noise_ids, key):
    asked = None if reference is None else lambda: nullcontext(reference)
    return domain.terms(policy, asked, rows, torch.as_tensor(noise_ids), key, RegressionTerms)


@pytest.mark.parametrize("noise", ["independent", "rollout"])
def test_terms_are_the_formulas_and_the_divergence_has_a_gradient(cache, noise):
    domain, reference = build_domain(f"domain.noise={noise}"), transformer()
    policy, key = perturbed(reference), DrawKey(seed=5, iteration=1, update=2, draw=1)
    rows = rows_of(domain, [10, 11, 12], PROMPTS)
    found = terms(domain, policy, reference, rows, [10, 11, 12], key)

    x1, t = rows.tensors["x1"], uniform(key, [10, 11, 12], Purpose.TRAIN_TIME)
    x0 = normal(key, [10, 11, 12], Purpose.TRAIN_NOISE, domain.latent_shape)
    x0 = torch.zeros_like(x1) if noise == "rollout" else x0
    x_t = torch.lerp(x0, x1, t.view(-1, 1, 1, 1))
    v, v_ref = (velocity_by_hand(m, PROMPTS, x_t, t) for m in (policy, reference))
    divergence = ((v - v_ref) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(found.error_N, ((v - (x1 - x0)) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(found.reference_error_N, ((v_ref - (x1 - x0)) ** 2).mean((1, 2, 3)))
    torch.testing.assert_close(found.divergence_N, divergence)
    assert divergence.min() > 1e-4
    sums = domain.divergence_metrics(found)["w2_sum"]
    torch.testing.assert_close(sums, ((v - v_ref) ** 2).sum((1, 2, 3)))

    weight = policy.proj_out.weight
    (expected,) = torch.autograd.grad(divergence.sum(), weight)
    (gradient,) = torch.autograd.grad(found.divergence_N.sum(), weight, retain_graph=True)
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(found.error_N.sum(), weight)[0].norm() > 1e-3
    assert not found.reference_error_N.requires_grad


def test_without_a_reference_nothing_of_it_is_measured(cache):
    domain, model = build_domain(), transformer()
    rows, key = rows_of(domain, [0, 1], PROMPTS[:2]), DrawKey(0, 0)

    found = terms(domain, model, None, rows, [0, 1], key)
    assert found.divergence_N is None and found.reference_error_N is None
    same = terms(domain, model, model, rows, [0, 1], key)
    assert same.divergence_N.tolist() == [0, 0]


def test_rows_of_a_pair_share_noise_and_time_and_other_draws_differ(cache):
    domain, model, shown = build_domain(), transformer(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: shown.append((kwargs["hidden_states"], kwargs["timestep"])),
        with_kwargs=True,
    )
    rows = rows_of(domain, [3, 8, 5], [PROMPTS[0]] * 3)
    keys = [DrawKey(1, 1), DrawKey(1, 1), DrawKey(2, 1), DrawKey(1, 2)]
    keys += [DrawKey(1, 1, update=1), DrawKey(1, 1, draw=1)]
    for key in keys:
        terms(domain, model, model, rows, [3, 3, 5], key)
    x_t, timestep = shown[0]
    assert timestep[0] == timestep[1] != timestep[2]
    t = (1 - timestep / 1000).view(-1, 1, 1, 1)
    x0 = (x_t - t * rows.tensors["x1"]) / (1 - t)
    torch.testing.assert_close(x0[0], x0[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(x0[0], x0[2], atol=1e-2)
    times = [tuple(timestep.tolist()) for _, timestep in shown]
    assert times[0] == times[1] and len(set(times)) == len(keys) - 1


@pytest.mark.parametrize("noise", ["independent", "rollout"])
def test_errors_of_the_old_policy_are_remembered_at_every_draw(cache, noise):
    domain, old = build_domain(f"domain.noise={noise}"), transformer()
    policy, ids = perturbed(old), torch.tensor([3, 3, 5])
    rows = rows_of(domain, [3, 8, 5], PROMPTS)
    keys = [DrawKey(1, 1, draw=draw) for draw in range(2)]
    kept = domain.remember_draws(old, rows, ids, keys)
    assert kept.tensors["old_error"].shape == (3, 2)

    def measured(model, of, key):
        return domain.terms(model, None, of, ids, key, OldErrorTerms)

    for key in keys:
        begun, moved = measured(old, kept, key), measured(policy, kept, key)
        assert torch.equal(begun.old_error_N, begun.error_N)  # the first ratio is exactly 1
        assert torch.equal(moved.old_error_N, begun.error_N)
        assert not torch.isclose(moved.error_N, moved.old_error_N).any()
        assert torch.equal(moved.noise_N, 1 - uniform(key, ids.tolist(), Purpose.TRAIN_TIME))
        # Rows that nothing was remembered of are those of a policy that has not moved.
        fresh = measured(policy, rows, key)
        assert torch.equal(fresh.old_error_N, fresh.error_N) and fresh.error_N.requires_grad
        assert not fresh.old_error_N.requires_grad
    old_ND = kept.tensors["old_error"]
    assert torch.equal(kept.take(torch.tensor([2, 0])).tensors["old_error"], old_ND[[2, 0]])


# ---- embeddings ------------------------------------------------------------------------------


def load(texts, model=None, length=12, dtype=torch.float32, t5=False):
    return load_embeddings(
        model or find_model(MODEL),
        texts,
        t5=t5,
        max_sequence_length=length,
        device=CPU,
        dtype=dtype,
    )


def state(folder):
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_embeddings_are_the_pipelines_and_the_second_load_encodes_nothing(cache):
    texts = [prompt.text for prompt in PROMPTS]
    sequence, pooled = load(texts).batch(texts, CPU)
    assert cache_folder() == cache / "embeddings"
    before = state(cache)
    assert len(before) == 2  # the hashes of the encoders' files are the other one
    again = load([*texts, *texts]).batch(texts, CPU)
    assert state(cache) == before
    assert torch.equal(again[0], sequence) and torch.equal(again[1], pooled)
    encoder = pipeline(t5=False)
    expected, _, expected_pooled, _ = encoder.encode_prompt(
        texts, None, None, do_classifier_free_guidance=False, max_sequence_length=12
    )
    torch.testing.assert_close(sequence, expected)
    torch.testing.assert_close(pooled, expected_pooled)
    load([*texts, "something new"])
    after = state(cache)
    assert len(after) == len(before) + 1 and before.items() <= after.items()


def test_an_embedding_is_found_again_only_for_the_same_text_encoder_length_and_dtype(
    cache, tmp_path
):
    model = find_model(MODEL)
    moved = shutil.copytree(model, tmp_path / "moved")
    fingerprint = encoder_fingerprint(model, False, 12, "torch.float32")
    assert encoder_fingerprint(moved, False, 12, "torch.float32") == fingerprint
    others = {
        encoder_fingerprint(moved, False, 13, "torch.float32"),
        encoder_fingerprint(moved, False, 12, "torch.bfloat16"),
        encoder_fingerprint(moved, True, 12, "torch.float32"),
    }
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        path = sorted((moved / part).glob("*.json"))[0]
        path.write_text(path.read_text() + " ")
        others.add(encoder_fingerprint(moved, False, 12, "torch.float32"))
    assert len(others - {fingerprint}) == 7

    load(["a red ring"])
    files = set(state(cache))
    load(["a red ring"], dtype=torch.bfloat16)
    load(["a red ring"], model=moved)
    load(["a red rings"])
    assert len(set(state(cache)) - files) == 3


# ---- errors ----------------------------------------------------------------------------------


def test_sizes_that_the_model_cannot_make_are_refused():
    for setting, message in [
        ("domain.height=21", "domain.height = 21: this model takes multiples of 5 pixels up to 20"),
        ("domain.width=40", "domain.width = 40"),
    ]:
        with pytest.raises(ConfigError, match=message):
            FlowDomain(demo_config(overrides=[setting]).domain)


@pytest.mark.parametrize(
    "part",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "text_encoder",
        "text_encoder/model.safetensors",
        "text_encoder_3",
        "tokenizer_2",
    ],
)
def test_a_folder_with_a_part_missing_is_named(cache, tmp_path, part):
    model = Path(shutil.copytree(find_model(MODEL), tmp_path / "model"))
    (shutil.rmtree if (model / part).is_dir() else os.remove)(model / part)
    config = demo_config(overrides=[f"domain.model={model}", "domain.t5=true"])
    with pytest.raises(ModelNotFoundError) as error:
        domain = FlowDomain(config.domain)
        domain.policy_spec()
        domain.prepare(PROMPTS, CPU, torch.float32)
    assert part.split("/")[0] in str(error.value)
    assert part != "text_encoder_3" or "domain.t5 = false" in str(error.value)


def asks_the_hub(rank, world, name):
    with pytest.raises(ModelNotFoundError) as error:
        FlowDomain(demo_config(overrides=[f"domain.model={name}"]).domain)
    return str(error.value)


def test_a_hub_id_without_a_network_says_how_to_prefetch(tmp_path):
    """In a process of its own, which started with HF_HUB_OFFLINE=1 as compute nodes are."""
    (said,) = run_ranks(asks_the_hub, 1, "nobody/no-such-model")
    for text in ("nobody/no-such-model", "login node", "hf download nobody/no-such-model"):
        assert text in said
    (said,) = run_ranks(asks_the_hub, 1, str(tmp_path / "nowhere"))
    assert "is not there" in said and str(tmp_path) in said
