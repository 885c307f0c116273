"""The contract of an engine, one suite over every variant: the same numbers as a plain loop.

The plain loop is written here by hand, in one process, on the same diffusers class and rows. A new
engine is a line of VARIANTS (and of `held_numbers`, how it stores what a rank holds).
"""

from __future__ import annotations

import functools
import importlib
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen3Config, Qwen3ForCausalLM

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, WeightsError
from adrpo_scale.domains.flow import ATTENTION, WEIGHTS, FlowDomain
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.weights import SafetensorsFolder, find_model, initial_uniform
from adrpo_scale.run.build import build_engine
from adrpo_scale.training.ema import Ema
from tests.support.ranks import run_ranks
from tests.support.tiny import FULL, MODEL, demo_config, load_whole, whole_tensors

VARIANTS: dict[str, list[str]] = {
    "fsdp2-1": ["engine.name=fsdp2", "engine.shard=1"],
    "fsdp2-node": ["engine.name=fsdp2", "engine.shard=node"],
    "fsdp2-all": ["engine.name=fsdp2", "engine.shard=all"],
    "zero3-all": ["engine.name=zero3", "engine.shard=all"],
    "zero3-node": ["engine.name=zero3", "engine.shard=node"],
    "zero3-offload": [
        *("engine.name=zero3", "engine.shard=all"),
        *("engine.offload_optimizer=true", "engine.offload_parameters=true"),
    ],
}
PER_NODE = 2  # four ranks are two nodes of two
WORLDS = {"zero3-node": [4], "zero3-offload": [2]}  # elsewhere these are zero3-all, or as it
SLOW = {"zero3-node", "zero3-offload"}  # half a minute each
CASES = [
    pytest.param(variant, world, marks=[pytest.mark.slow] if variant in SLOW else [])
    for variant in VARIANTS
    for world in WORLDS.get(variant, [1, 2, 4])
]
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


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("variant", "world"), CASES)
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
    return sum(held(parameter) for parameter in model.parameters())


def held(parameter: Any) -> int:
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: its shard, and what is gathered at the moment
        return parameter.ds_tensor.numel() + parameter.numel()
    return parameter.numel()


def is_sharded(parameter: Any) -> bool:
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_tensor")


def degree(variant: str, world: int) -> int:
    """Over how many ranks a parameter is spread."""
    if variant.startswith("zero3"):
        return world
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
    assert all(is_sharded(p) == sharded for p in trained)
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

    # Slices and their places cover every tensor, and what is written to them takes effect.
    whole = whole_tensors(engine)
    assert all(tensor.isfinite().all() for tensor in whole.values())
    load_whole(engine, {name: 2 * tensor for name, tensor in whole.items()})
    assert all(torch.equal(t, 2 * whole[name]) for name, t in whole_tensors(engine).items())
    load_whole(engine, whole)
    assert all(torch.equal(t, whole[name]) for name, t in whole_tensors(engine).items())
    assert_average_goes_in_and_out(engine, model)
    result = update(engine, model)[1]
    return result


def assert_average_goes_in_and_out(engine: Engine, model: nn.Module) -> None:
    """In and out through the same slices: they hold what is trained after a `publish` too."""
    average, whole = Ema(engine, 0.5), whole_tensors(engine)
    for values in average.slices.values():
        values.mul_(3)
    for factor, weights in ((3, average.applied()), (1, nullcontext())):
        with weights, engine.sampling(model):
            for name, parameter in model.named_parameters():
                assert name not in whole or torch.equal(parameter, factor * whole[name])


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("variant", "world"),
    [
        *[("fsdp2-1", 2), ("fsdp2-node", 4), ("fsdp2-all", 3)],
        *[("zero3-all", 3), ("zero3-node", 4), ("zero3-offload", 2)],
    ],
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


@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all", "zero3-all", "zero3-offload"])
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


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "zero3-node"])
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_every_rank(variant):
    world = 4 if variant.endswith("node") else 2
    assert run_ranks(skips, world, variant) == [[True, True, False]] * world


def trains_in_bfloat16(rank, world, variant, kind, steps):
    engine, spec = build(variant, kind, "engine.dtype=bfloat16")
    model = engine.build_policy(spec)
    start = whole_tensors(engine)
    disk = weights_on_disk()
    for name, tensor in start.items():  # masters are as they are stored, not rounded to bfloat16
        if kind == "full":
            assert torch.equal(tensor, disk[name])
        elif "lora_A" in name:
            assert torch.equal(tensor, initial_uniform(name, tensor.shape, tensor.shape[1], 0))
    for _ in range(steps):
        update(engine, model, micro_batches=2, rate=1e-6)
    end = whole_tensors(engine)
    with engine.sampling(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    moved = torch.cat([(end[n] - start[n]).abs().flatten() for n in start if "lora_A" not in n])
    assert all(t.dtype == torch.float32 for t in end.values())
    return float(moved.median())


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all", "zero3-all", "zero3-offload"])
def test_bfloat16_compute_does_not_lose_small_updates(variant, kind):
    """Eight steps of 1e-6 are far below bfloat16's spacing at most weights of the model."""
    for moved in run_ranks(trains_in_bfloat16, 2, variant, kind, 8):
        assert 3e-6 < moved < 9e-6


def trains_with(rank, world, variant, settings):
    engine, spec = build(variant, "full", *settings)
    model = engine.build_policy(spec)
    return [update(engine, model, 2)[1].grad_norm for _ in range(2)]


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
def test_settings_for_memory_and_determinism_do_not_change_the_numbers(variant):
    settings = ["engine.activation_checkpointing=true", "engine.deterministic=true"]
    if variant.startswith("fsdp2"):
        settings.append("engine.reduce_every_micro_batch=true")
    for norms in run_ranks(trains_with, 2, variant, settings):
        assert norms == pytest.approx(plain_loop("full")[1][:2], rel=1e-5)


# ---- communication ---------------------------------------------------------------------------


class GatheredBytes(TorchDispatchMode):
    """Counts what all-gathers bring to this rank, whichever function calls them."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.name() in ("c10d::_allgather_base_", "c10d::allgather_"):
            self.count += sum(t.numel() * t.element_size() for t in tree_leaves(args[0]))
        return result


def counts_gathers(rank, world, variant):
    engine, spec = build(variant, "full")
    model, frozen = engine.build_policy(spec), engine.build_frozen(frozen_spec(spec))
    update(engine, model)
    batch, dtype = rows(model, 0, 2), torch.float32
    with GatheredBytes() as sampling, engine.sampling(model, frozen):
        for _ in range(3 * rank):  # none on rank 0
            predict(model, batch, dtype), predict(frozen, batch, dtype)
    with GatheredBytes() as naive, torch.no_grad():
        for _ in range(3):
            predict(model, batch, dtype), predict(frozen, batch, dtype)
    return sampling.count, naive.count


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all", "zero3-offload"])
def test_sampling_gathers_every_parameter_once_however_many_forwards_there_are(variant):
    world, whole = 2, plain_loop("full")[2].values()
    once = 2 * sum(4 * tensor.numel() for tensor in whole)
    padding = 2 * sum(4 * world * tensor[:1].numel() for tensor in whole)
    for sampling, naive in run_ranks(counts_gathers, world, variant):
        assert once <= sampling <= 1.01 * once + padding
        assert naive > 1.9 * once  # ZeRO-3 keeps some for a backward that does not come


def fails_while_sampling(rank, world, variant):
    engine, spec = build(variant, "full")
    model = engine.build_policy(spec)
    before = held_numbers(model)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), engine.sampling(model):
            predict(model, rows(model, 0, 1), torch.float32)
            raise ZeroDivisionError
        assert held_numbers(model) == before
    assert torch.is_grad_enabled()
    return [update(engine, model)[1].grad_norm for _ in range(2)]


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
def test_an_exception_while_sampling_leaves_a_model_that_trains(variant):
    for norms in run_ranks(fails_while_sampling, 2, variant):
        assert norms == pytest.approx(plain_loop("full")[1][:2], rel=1e-5)


# ---- small models ----------------------------------------------------------------------------


class Branches(nn.Module):
    """Sizes that no number of ranks divides, and parameters that not every pass uses."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 5), nn.Linear(3, 5)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("shift", torch.zeros(5))
        self.register_buffer("constant", torch.full((5,), 0.5), persistent=False)

    def forward(self, rows: Tensor, branch: str) -> Tensor:
        return self.scale * getattr(self, branch)(rows) + self.shift + self.constant


def small_spec(folder: Path) -> ModelSpec:
    return ModelSpec(Branches, SafetensorsFolder(folder, "model"), blocks=())


def small_model(folder: Path) -> Branches:
    model = Branches()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model


def branch_losses(model: nn.Module, branches: list[str], rank: int, world: int) -> list[Tensor]:
    batch = torch.arange(24, dtype=torch.float32).view(8, 3).sin()
    mine = dist.block(8, rank, world)
    mine_rows = batch[mine.start : mine.stop]
    return [model(mine_rows, branch).square().sum() / 8 for branch in branches]


def trains_branches(rank, world, variant, folder):
    settings = [*VARIANTS[variant], "optimizer.max_grad_norm=1e6"]
    engine = build_engine(demo_config(overrides=settings))
    model = engine.build_policy(small_spec(folder))
    assert torch.equal(model.shift, torch.arange(5.0))
    assert torch.equal(model.constant, torch.full((5,), 0.5))
    norms = []
    for branches in (["left", "right"], ["right", "left"], ["left"]):
        for k, name in enumerate(branches):
            (loss,) = branch_losses(model, [name], rank, world)
            engine.backward(loss, last=k == len(branches) - 1)
        norms.append(engine.step(0.1).grad_norm)
    return norms, whole_tensors(engine)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all", "zero3-offload"])
def test_a_parameter_that_a_micro_batch_does_not_use(tmp_path, variant, world):
    """Its gradients of other micro-batches count, and those of the step before do not."""
    torch.manual_seed(0)
    model = Branches()
    model.shift = torch.arange(5.0)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model = small_model(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0)
    norms = []
    for branches in (["left", "right"], ["right", "left"], ["left"]):
        optimizer.zero_grad()
        sum(branch_losses(model, branches, 0, 1)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(float(nn.utils.get_total_norm(gradients)))
        optimizer.step()
    for found, whole in run_ranks(trains_branches, world, variant, tmp_path):
        assert found == pytest.approx(norms, rel=1e-5)
        for name, parameter in model.named_parameters():
            if not name.startswith("right"):  # ZeRO-3 steps it with a zero gradient, others do not
                assert torch.allclose(whole[name], parameter, rtol=1e-5), name


def tied_config() -> Qwen3Config:
    sizes = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 37}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6}
    return Qwen3Config(**sizes, **heads, tie_word_embeddings=True)


def tied_spec(folder: Path) -> ModelSpec:
    return ModelSpec(
        build=lambda: Qwen3ForCausalLM(tied_config()),
        weights=SafetensorsFolder(folder, "model"),
        blocks=("Qwen3DecoderLayer",),
        units=lambda model: [[model.model.embed_tokens, model.lm_head]],
        tie=lambda model: model.tie_weights(),
    )


def token_loss(model: nn.Module, start: int = 0, stop: int = 8) -> Tensor:
    tokens = (torch.arange(8 * 6).view(8, 6) ** 2 % 37)[start:stop]
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum"
    )


def trains_tied(rank, world, variant, folder):
    engine = build_engine(demo_config(overrides=VARIANTS[variant]))
    model = engine.build_policy(tied_spec(folder))
    mine = dist.block(8, rank, world)
    for _ in range(UPDATES):
        engine.backward(token_loss(model, mine.start, mine.stop) / 40, last=True)
        engine.step(RATE)
    with engine.sampling(model):
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    return whole_tensors(engine)


@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all", "zero3-all"])
def test_tied_weights_train_as_one_parameter(tmp_path, variant):
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(tied_config())
    model.save_pretrained(tmp_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for _ in range(UPDATES):
        optimizer.zero_grad()
        (token_loss(model) / 40).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    expected = dict(model.named_parameters())
    for whole in run_ranks(trains_tied, 2, variant, tmp_path):
        assert whole.keys() == expected.keys() and "lm_head.weight" not in whole
        for name, parameter in expected.items():
            distance = (whole[name] - parameter).norm()
            assert distance <= 1e-4 * parameter.norm(), f"{name}: {distance:.2e}"


# ---- errors ----------------------------------------------------------------------------------


def publishes_copies(rank, world):
    """With offload on GPUs DeepSpeed's accessors give copies; here they are made to."""
    engine, spec = build("zero3-offload", "full")
    utils = importlib.import_module("deepspeed.utils")
    for name in ("safe_get_local_fp32_param", "safe_get_local_optimizer_state"):
        accessor = getattr(utils, name)
        setattr(utils, name, lambda *args, accessor=accessor: accessor(*args).clone())
    model = engine.build_policy(spec)
    update(engine, model)
    whole = whole_tensors(engine)
    for slices in engine.moments().values():
        for values in slices.values():
            values.fill_(rank + 3)
    load_whole(engine, {name: 2 * tensor for name, tensor in whole.items()})
    assert all(torch.equal(t, 2 * whole[name]) for name, t in whole_tensors(engine).items())
    assert_average_goes_in_and_out(engine, model)
    for slices in engine.moments().values():
        assert all((values == rank + 3).all() for values in slices.values())
    update(engine, model)
    stepped = whole_tensors(engine)
    engine.moments(), update(engine, model)
    moved = whole_tensors(engine)
    engine.publish()  # nothing handed out before a step is written back after it
    assert any(not torch.equal(moved[name], stepped[name]) for name in moved)
    assert all(torch.equal(t, moved[name]) for name, t in whole_tensors(engine).items())


def test_what_zero3_hands_out_as_copies_is_written_back():
    run_ranks(publishes_copies, 2)


def refuses_shapes(rank, world, variant, folder):
    engine, spec = build(variant, "full")
    spec = replace(spec, weights=SafetensorsFolder(folder, WEIGHTS))
    with pytest.raises(WeightsError, match=r"proj_out\.bias does not have the model's shape"):
        engine.build_policy(spec)


@pytest.mark.parametrize("variant", ["fsdp2-all", "zero3-all"])
@pytest.mark.parametrize("more", [-1, 1])
def test_weights_of_another_shape_are_refused_on_every_rank(tmp_path, variant, more):
    """Read by rows, a tensor with more of them would pass for the model's."""
    tensors = weights_on_disk()
    tensors["proj_out.bias"] = torch.ones(len(tensors["proj_out.bias"]) + more)
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    run_ranks(refuses_shapes, 2, variant, tmp_path)


def refuses_weights(rank, world, variant, folder, fault):
    engine, spec = build(variant, "lora")
    spec = replace(spec, weights=SafetensorsFolder(folder, WEIGHTS))
    with pytest.raises(WeightsError, match=rf"1 {fault} \['proj_out"):
        engine.build_policy(spec)


@pytest.mark.parametrize("fault", ["missing", "unknown"])
def test_weights_that_do_not_cover_the_model_exactly_are_refused(tmp_path, fault):
    tensors = weights_on_disk()
    if fault == "missing":
        del tensors["proj_out.bias"]
    else:
        tensors["proj_out.scale"] = torch.ones(2)
    save_file(tensors, tmp_path / f"{WEIGHTS}.safetensors")
    for variant in ("fsdp2-1", "zero3-all"):
        run_ranks(refuses_weights, 1, variant, tmp_path, fault)


def unequal_nodes(rank, world, name):
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with pytest.raises(ConfigError, match="every node must run the same number"):
        build_engine(demo_config(overrides=[f"engine.name={name}", "engine.shard=node"]))


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
def test_sharding_inside_nodes_of_unequal_size_is_refused(name):
    run_ranks(unequal_nodes, 3, name)


def test_zero3_refuses_to_replicate():
    with pytest.raises(ConfigError, match=r'engine.shard: .*use engine.name = "fsdp2"'):
        demo_config(overrides=["engine.name=zero3", "engine.shard=1"])
