"""A moving reference beside the policy, in every engine: each answers with its own weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adrpo_scale.engines.adapters import is_reference_adapter
from adrpo_scale.training.reference import MovingReference, ReferenceConfig
from tests.support.engine_cases import build, loss_sum, predict, rows, update
from tests.support.ranks import run_ranks
from tests.support.tiny import whole_tensors

EMA = ReferenceConfig(kind="ema", decay=0.5)


def made(variant, kind, *settings):
    """(engine, policy, moving reference) inside a rank."""
    engine, spec = build(variant, kind, *settings)
    policy = engine.build_policy(replace(spec, reference_adapter=kind == "lora"))
    other = policy if kind == "lora" else engine.build_frozen(spec)
    return engine, policy, MovingReference(EMA, engine, other)


def shift(moving, by=0.05):
    """Moves the reference visibly away from the policy, which a new one equals."""
    for part in moving.slices.values():
        part.add_(by)
    moving.publish()


def answers_with_its_own_weights(rank, world, variant, kind):
    engine, policy, moving = made(variant, kind)
    batch = rows(policy, 0, 4)
    assert all(parameter.requires_grad for parameter in policy.parameters()) == (kind == "full")
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert not any(is_reference_adapter(name) for name in trained)

    with moving() as model, torch.no_grad():
        begun = predict(model, batch, torch.float32)
    own = predict(policy, batch, torch.float32).detach()
    torch.testing.assert_close(begun, own, rtol=0, atol=0)  # it begins as the policy

    shift(moving)
    before = loss_sum(policy, batch)
    engine.backward(before / 16, last=True)
    norm = engine.step(0.0).grad_norm
    with moving() as model, torch.no_grad():
        theirs = predict(model, batch, torch.float32)
    assert float((theirs - own).abs().mean()) > 1e-3
    after = loss_sum(policy, batch)  # the first pass after the reference's
    engine.backward(after / 16, last=True)
    again = engine.step(0.0).grad_norm
    assert float(after) == float(before)
    assert again == norm

    # In `sampling` too, where the parameters are whole.
    with engine.sampling(model):
        with moving() as model:
            sampled = predict(model, batch, torch.float32)
        alone = predict(policy, batch, torch.float32)
    assert torch.equal(alone, own)
    torch.testing.assert_close(sampled, theirs, rtol=1e-5, atol=1e-6)

    # What it holds is its slices: a policy with them answers alike.
    slices = engine.trained_slices()
    for name, part in moving.slices.items():
        slices[name].copy_(part)
    engine.publish()
    torch.testing.assert_close(predict(policy, batch, torch.float32), theirs, rtol=1e-5, atol=1e-6)
    return norm


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize(
    ("variant", "world"),
    [
        *[("fsdp2-1", 1), ("fsdp2-all", 2), ("zero3-all", 2)],
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("fsdp2-node", 4), ("zero3-node", 4), ("zero3-offload", 2))
        ),
    ],
)
def test_policy_and_moving_reference_answer_with_their_own_weights(variant, world, kind):
    assert len(set(run_ranks(answers_with_its_own_weights, world, variant, kind))) == 1


def follows(rank, world, variant, kind):
    engine, policy, moving = made(variant, kind, "engine.dtype=bfloat16")
    first = {name: part.clone() for name, part in moving.slices.items()}
    for iteration in (1, 2):
        update(engine, policy)
        moving.move(iteration)
    trained = engine.trained_slices()
    assert all(part.dtype == torch.float32 for part in moving.slices.values())
    assert any(not torch.equal(part, first[name]) for name, part in moving.slices.items())
    assert any(not torch.equal(part, trained[name]) for name, part in moving.slices.items())
    moving.begin()
    assert all(torch.equal(part, trained[name]) for name, part in moving.slices.items())
    return {name: tensor.norm() for name, tensor in whole_tensors(engine).items()}


@pytest.mark.parametrize("variant", ["fsdp2-1", "fsdp2-all", "zero3-all"])
def test_the_average_is_kept_in_float32_beside_a_policy_in_bfloat16(variant):
    run_ranks(follows, 2, variant, "lora")
