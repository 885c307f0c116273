"""What a rank holds and gathers: loading, sampling, the frozen reference, in every engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn

from adrpo_scale.core import dist
from adrpo_scale.engines.adapters import adapters_off
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.weights import find_model
from tests.support.closeness import drifted
from tests.support.engine_cases import (
    GatheredBytes,
    assert_average_goes_in_and_out,
    build,
    degree,
    held_numbers,
    is_sharded,
    plain_loop,
    predict,
    rows,
    update,
    weights_on_disk,
)
from tests.support.ranks import run_ranks
from tests.support.tiny import MODEL, load_whole, whole_tensors

# ---- models and rows -----------------------------------------------------------------------------


def frozen_spec(spec: ModelSpec) -> ModelSpec:
    return replace(spec, lora=None)


# ---- what a rank holds ---------------------------------------------------------------------------


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


# ---- communication -------------------------------------------------------------------------------


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
        assert norms == drifted(plain_loop("full")[1][:2], updates=1)
