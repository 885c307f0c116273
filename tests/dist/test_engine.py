"""The contract of an engine, one suite over every variant: the same numbers as a plain loop.

The plain loop is written here by hand, in one process, on the same diffusers class and rows. A new
engine is a line of VARIANTS (and of `held_numbers`, how it stores what a rank holds).
"""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from adrpo_scale import dist
from adrpo_scale.build import build_engine
from adrpo_scale.domains.flow import ATTENTION, WEIGHTS, FlowDomain
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.base import Engine
from adrpo_scale.errors import ConfigError, WeightsError
from adrpo_scale.models import ModelSpec
from adrpo_scale.weights import SafetensorsFolder, find_model, initial_uniform
from tests.ranks import run_ranks
from tests.tiny import FULL, MODEL, demo_config, load_whole, whole_tensors

VARIANTS: dict[str, list[str]] = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-node": ["engine.name=fsdp2", "engine.shard=node"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
}
PER_NODE = 2  # four ranks are two nodes of two
ROWS = 16
UPDATES = 3
RATE = 1e-3
MAX_NORM = 1e-3  # below the norms of these rows, so that clipping is at work
RANK = 16


# ---- models and rows -------------------------------------------------------------------------


def build(variant: str, kind: str, *settings: str) -> tuple[Engine, ModelSpec]:
    """An engine inside a rank, and what it is to build. kind: "lora" or "full"."""
    os.environ["LOCAL_WORLD_SIZE"] = str(min(PER_NODE, dist.world_size()))
    os.environ["LOCAL_RANK"] = str(dist.rank() % PER_NODE)
    trained = FULL if kind == "full" else []
    clipping = f"optimizer.max_grad_norm={MAX_NORM}"
    config = demo_config(overrides=[*VARIANTS[variant], *trained, clipping, *settings])
    return build_engine(config), FlowDomain(config.domain).policy_spec()


def frozen_spec(spec: ModelSpec) -> ModelSpec:
    return replace(spec, lora=None)


def weights_on_disk() -> dict[str, Tensor]:
    """In float32, whatever the file has: that is what a float32 engine must hold to the bit."""
    stored = load_file(find_model(MODEL) / "transformer" / f"{WEIGHTS}.safetensors")
    return {name: tensor.float() for name, tensor in stored.items()}


def rows(model: nn.Module, start: int = 0, stop: int = ROWS) -> dict[str, Tensor]:
    """Rows [start, stop) of ROWS random ones, the same everywhere."""
    config, random = model.config, torch.Generator().manual_seed(7)
    latent = (ROWS, config.in_channels, config.sample_size, config.sample_size)
    made = {
        "hidden_states": torch.randn(latent, generator=random),
        "timestep": 1000 * torch.rand(ROWS, generator=random),
        "encoder_hidden_states": torch.randn(ROWS, 8, config.joint_attention_dim, generator=random),
        "pooled_projections": torch.randn(ROWS, config.pooled_projection_dim, generator=random),
        "target": torch.randn(latent, generator=random),
        "weight": torch.rand(ROWS, generator=random) * 4 - 1,
    }
    return {name: tensor[start:stop] for name, tensor in made.items()}


def predict(model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    inputs = {n: t for n, t in batch.items() if n not in ("target", "weight")}
    inputs = {n: t if n == "timestep" else t.to(dtype) for n, t in inputs.items()}
    return model(**inputs, return_dict=False)[0].float()


def loss_sum(
    model: nn.Module, batch: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    errors = (predict(model, batch, dtype) - batch["target"]).square().flatten(1).mean(1)
    return (batch["weight"] * errors).sum()


def update(engine: Engine, model: nn.Module, micro_batches: int = 1, rate: float = RATE) -> Any:
    """(loss, StepResult) of one optimizer step on all rows, each rank on its block of them."""
    mine, loss = dist.block(ROWS, dist.rank(), dist.world_size()), torch.zeros(())
    for k in range(micro_batches):
        part = dist.block(len(mine), k, micro_batches)
        batch = rows(model, mine.start + part.start, mine.start + part.stop)
        micro_loss = loss_sum(model, batch, engine.dtype) / ROWS
        engine.backward(micro_loss, last=k == micro_batches - 1)
        loss += micro_loss.detach()
    return float(dist.all_sum(loss)), engine.step(rate)


# ---- the plain loop --------------------------------------------------------------------------


@functools.cache
def plain_loop(kind: str) -> tuple[list[float], list[float], dict[str, Tensor]]:
    """(loss and gradient norm of each update, trained parameters after them)."""
    model = SD3Transformer2DModel.from_pretrained(find_model(MODEL) / "transformer")
    if kind == "lora":
        model.requires_grad_(False)
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(ATTENTION))
        peft.inject_adapter_in_model(config, model)
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                whole = initial_uniform(name, parameter.shape, parameter.shape[1], seed=0)
                parameter.data.copy_(whole)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    losses, norms = [], []
    for _ in range(UPDATES):
        loss = loss_sum(model.train(), rows(model)) / ROWS
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms, {n: p.detach() for n, p in trained.items()}


def trains(rank, world, variant, kind, micro_batches):
    found = []
    for count in micro_batches:
        engine, spec = build(variant, kind)
        model = engine.build_policy(spec)
        done = [update(engine, model, count) for _ in range(UPDATES)]
        whole = whole_tensors(engine)
        found.append(
            ([loss for loss, _ in done], [result for _, result in done], whole if rank == 0 else {})
        )
    return found


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_equal_a_plain_loop_at_any_world_size_and_accumulation(variant, kind, world):
    losses, norms, parameters = plain_loop(kind)
    assert min(norms) > MAX_NORM
    micro_batches = [1, 2, 4]
    by_rank = run_ranks(trains, world, variant, kind, micro_batches)
    for place in range(len(micro_batches)):
        assert len({tuple(found[place][1]) for found in by_rank}) == 1  # to the bit on every rank
        found_losses, results, found = by_rank[0][place]
        assert found_losses == pytest.approx(losses, rel=1e-5)
        assert [r.grad_norm for r in results] == pytest.approx(norms, rel=1e-5)
        assert not any(r.skipped for r in results)
        assert found.keys() == parameters.keys()
        for name, expected in parameters.items():
            assert found[name].dtype == torch.float32
            distance = (found[name] - expected).norm()
            assert distance <= 1e-4 * expected.norm(), f"{name}: {distance:.2e}"


# ---- what a rank holds -----------------------------------------------------------------------


def held_numbers(model: nn.Module) -> int:
    """How many numbers of the parameters this rank holds."""
    parameters = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return sum(p.numel() for p in parameters)


def degree(variant: str, world: int) -> int:
    """Over how many ranks a parameter is spread."""
    return {"1": 1, "node": min(PER_NODE, world), "all": world}[variant.rpartition("-")[2]]


def assert_whole(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Inside `sampling`: the base weights are there in full, to the bit."""
    found = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    for name, tensor in expected.items():
        if name in found:
            assert torch.equal(found[name], tensor.to(found[name].dtype)), name
    assert {n for n in found if "lora_" not in n} <= expected.keys()


def shards_and_gathers(rank, world, variant, kind):
    engine, spec = build(variant, kind)
    model, frozen = engine.build_policy(spec), engine.build_frozen(frozen_spec(spec))
    disk = weights_on_disk()
    sharded = degree(variant, world) > 1

    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(isinstance(p, DTensor) == sharded for p in trained)
    assert not any(p.requires_grad for p in frozen.parameters())
    slices = sum(part.numel() for part in engine.trained_slices().values())
    whole = whole_tensors(engine)
    copies = world // degree(variant, world)
    total = dist.all_sum(torch.tensor(slices))
    assert total == copies * sum(t.numel() for t in whole.values())
    if kind == "full":
        assert all(torch.equal(tensor, disk[name]) for name, tensor in whole.items())
    else:
        assert all(tensor.any() == ("lora_A" in name) for name, tensor in whole.items())

    # Loaded exactly; inside `sampling` whole, and called as often as each rank likes; after it not.
    base = SD3Transformer2DModel.from_pretrained(find_model(MODEL) / "transformer")
    batch = rows(base, 0, 3)
    expected = predict(base, batch, torch.float32)
    before = held_numbers(model), held_numbers(frozen)
    with engine.sampling(model, frozen):
        assert_whole(model, disk)
        assert_whole(frozen, disk)
        for _ in range(rank):
            assert torch.equal(predict(model, batch, torch.float32), expected)
            assert torch.equal(predict(frozen, batch, torch.float32), expected)
        assert torch.is_grad_enabled() is False
    assert (held_numbers(model), held_numbers(frozen)) == before
    assert before[1] < sum(t.numel() for t in disk.values()) or not sharded

    # Training moves the policy and leaves the reference alone, to the bit.
    for _ in range(2):
        update(engine, model)
    with engine.sampling(model, frozen):
        assert_whole(frozen, disk)
        assert torch.equal(predict(frozen, batch, torch.float32), expected)
        assert not torch.equal(predict(model, batch, torch.float32), expected)
        if kind == "lora":
            with adapters_off(model):
                assert torch.equal(predict(model, batch, torch.float32), expected)
            assert not torch.equal(predict(model, batch, torch.float32), expected)

    # Slices and their layout cover every tensor, and what is written to them takes effect.
    whole = whole_tensors(engine)
    assert all(tensor.isfinite().all() for tensor in whole.values())
    load_whole(engine, {name: 2 * tensor for name, tensor in whole.items()})
    assert all(torch.equal(t, 2 * whole[name]) for name, t in whole_tensors(engine).items())
    load_whole(engine, whole)
    assert all(torch.equal(t, whole[name]) for name, t in whole_tensors(engine).items())
    result = update(engine, model)[1]
    return result


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("variant", "world"), [("fsdp2-1", 2), ("fsdp2-node", 4), ("fsdp2-all", 3)]
)
def test_sharding_loading_sampling_and_the_frozen_reference(variant, kind, world):
    results = run_ranks(shards_and_gathers, world, variant, kind)
    assert len(set(results)) == 1 and not results[0].skipped


def clips(rank, world, variant, max_norm):
    # So large an epsilon makes the step proportional to the gradient; Adam's would hide its size.
    settings = [f"optimizer.max_grad_norm={max_norm}", "optimizer.eps=1e3"]
    engine, spec = build(variant, "full", *settings)
    model = engine.build_policy(spec)
    before = whole_tensors(engine)
    _, result = update(engine, model, rate=1e3)
    moved = [(t - before[n]).double().norm() for n, t in whole_tensors(engine).items()]
    return result.grad_norm, float(torch.stack(moved).norm())


@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all"])
def test_the_global_norm_is_clipped_and_smaller_ones_are_left_alone(variant):
    norm = plain_loop("full")[1][0]
    for max_norm in (norm / 5, norm * 5):
        for found, moved in run_ranks(clips, 2, variant, max_norm):
            assert found == pytest.approx(norm, rel=1e-5)
            assert moved == pytest.approx(min(norm, max_norm), rel=1e-3)


def skips(rank, world, variant):
    engine, spec = build(variant, "lora")
    model = engine.build_policy(spec)
    update(engine, model)
    before = whole_tensors(engine)
    mine, skipped = dist.block(ROWS, rank, world), []
    for bad in (float("nan"), float("inf")):
        loss = loss_sum(model, rows(model, mine.start, mine.stop)) / ROWS
        engine.backward(loss * (bad if rank == world - 1 else 1.0), last=True)
        skipped.append(engine.step(RATE).skipped)
        assert all(
            torch.equal(tensor, before[name]) for name, tensor in whole_tensors(engine).items()
        )
    _, recovered = update(engine, model)  # nothing of it is left in gradients or moments
    assert all(tensor.isfinite().all() for tensor in whole_tensors(engine).values())
    return [*skipped, recovered.skipped]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_every_rank(variant):
    world = 4 if variant.endswith("node") else 2
    assert run_ranks(skips, world, variant) == [[True, True, False]] * world


def trains_in_bfloat16(rank, world, variant, kind, steps):
    engine, spec = build(variant, kind, "engine.dtype=bfloat16")
    model = engine.build_policy(spec)
    start = whole_tensors(engine)
    for _ in range(steps):
        update(engine, model, micro_batches=2, rate=1e-6)
    end = whole_tensors(engine)
    with engine.sampling(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    moved = torch.cat([(end[n] - start[n]).abs().flatten() for n in start if "lora_A" not in n])
    assert all(t.dtype == torch.float32 for t in end.values())
    return float(moved.median())


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all"])
def test_bfloat16_compute_does_not_lose_small_updates(variant, kind):
    """Eight steps of 1e-6 are far below bfloat16's spacing at most weights of the model."""
    for moved in run_ranks(trains_in_bfloat16, 2, variant, kind, 8):
        assert 3e-6 < moved < 9e-6


def trains_with(rank, world, settings):
    engine, spec = build("fsdp2-all", "full", *settings)
    model = engine.build_policy(spec)
    return [update(engine, model, 2)[1].grad_norm for _ in range(2)]


def test_settings_for_memory_and_determinism_do_not_change_the_numbers():
    settings = [
        "engine.activation_checkpointing=true",
        "engine.reduce_every_micro_batch=true",
        "engine.deterministic=true",
    ]
    for norms in run_ranks(trains_with, 2, settings):
        assert norms == pytest.approx(plain_loop("full")[1][:2], rel=1e-5)


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_weights_that_do_not_cover_the_model_exactly_are_refused(tmp_path, fault):
    tensors = weights_on_disk()
    if fault == "missing":
        del tensors["proj_out.bias"]
    else:
        tensors["proj_out.scale"] = torch.ones(2)
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    engine, spec = build("fsdp2-1", "lora")
    spec = replace(spec, weights=SafetensorsFolder(tmp_path, WEIGHTS))
    with pytest.raises(WeightsError, match=rf"1 {fault} \['proj_out"):
        engine.build_policy(spec)


def unequal_nodes(rank, world):
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(ConfigError, match="every node must run the same number"):
        build_engine(demo_config(overrides=["engine.shard=node"]))


def test_sharding_inside_nodes_of_unequal_size_is_refused():
    run_ranks(unequal_nodes, 3)
