"""Updates of every engine: the numbers of a plain loop, also clipped, skipped and in bfloat16."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.core import dist
from adrpo_scale.hub.weights import initial_uniform
from adrpo_scale.training.gradient_signal import moment_ratio
from tests.support.closeness import assert_adam_near, drifted, near
from tests.support.engine_cases import (
    CASES,
    MAX_NORM,
    RATE,
    ROWS,
    UPDATES,
    VARIANTS,
    build,
    loss_sum,
    plain_loop,
    rows,
    update,
    weights_on_disk,
)
from tests.support.ranks import run_ranks
from tests.support.tiny import whole_tensors

# ---- the plain loop ------------------------------------------------------------------------------


def trains(rank, world, variant, kind, micro_batches):
    found = []
    for count in micro_batches:
        engine, spec = build(variant, kind)
        model = engine.build_policy(spec)
        done = [update(engine, model, count) for _ in range(UPDATES)]
        ratio, whole = moment_ratio(engine, engine.optimizer_config), whole_tensors(engine)
        losses, results = [loss for loss, _ in done], [result for _, result in done]
        found.append((losses, results, whole if rank == 0 else {}, ratio))
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("variant", "world"), CASES)
def test_updates_equal_a_plain_loop_at_any_world_size_and_accumulation(variant, kind, world):
    # Four processes on two cores are the slowest; two of them see every accumulation.
    _check_updates(variant, kind, world, {1: [1, 4], 2: [1, 2, 4], 4: [2]}[world])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(("variant", "world"), [case for case in CASES if case.values[1] != 2])
def test_updates_equal_a_plain_loop_at_the_accumulations_that_are_left(variant, kind, world):
    _check_updates(variant, kind, world, {1: [2], 4: [1, 4]}[world])


def _check_updates(variant, kind, world, micro_batches):
    losses, norms, parameters, moments, ratio = plain_loop(kind)
    assert min(norms) > MAX_NORM
    by_rank = run_ranks(trains, world, variant, kind, micro_batches)
    for place in range(len(micro_batches)):
        assert len({tuple(found[place][1]) for found in by_rank}) == 1  # to the bit on every rank
        assert len({found[place][3] for found in by_rank}) == 1
        found_losses, results, found, found_ratio = by_rank[0][place]
        assert found_losses == drifted(losses, UPDATES)
        assert [r.grad_norm for r in results] == drifted(norms, UPDATES)
        assert found_ratio == drifted(ratio, UPDATES)
        assert not any(r.skipped for r in results)
        assert found.keys() == parameters.keys()
        assert {tensor.dtype for tensor in found.values()} == {torch.float32}
        assert_adam_near(found, parameters, moments, RATE, UPDATES)


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
            assert found == near(norm)
            # The step is rate / (eps + |g|) x g: |g| <= 1 of eps = 1e3 bends it by a thousandth.
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
        assert norms == drifted(plain_loop("full")[1][:2], updates=1)
