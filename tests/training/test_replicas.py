"""Replicas of the trained weights, compared: a bit that differs is found, and whose it is."""

from __future__ import annotations

import pytest
import torch

from adrpo_scale.core.errors import NodeError
from adrpo_scale.training.replicas import compare_replicas, fingerprint, odd_ranks
from tests.support.engine_cases import build
from tests.support.ranks import run_ranks


def compared(rank, world, variant, victim):
    """(what the comparison before, and after a flipped bit on rank `victim`, says)."""
    engine, spec = build(variant, "lora")
    engine.build_policy(spec)
    compare_replicas(engine, 20)
    if rank == victim:
        part = next(part for part in engine.trained_slices().values() if part.numel())
        part.view(torch.int32).flatten()[-1] ^= 1 << 3
    try:
        compare_replicas(engine, 40)
    except NodeError as error:
        return str(error), error.agreed
    return None


@pytest.mark.parametrize(("variant", "of"), [("fsdp2-1", 4), ("fsdp2-node", 2)])
def test_a_flipped_bit_on_one_rank_is_named_on_every_rank(variant, of):
    answers = run_ranks(compared, 4, variant, 2)
    assert len(set(answers)) == 1 and answers[0] is not None
    text, is_agreed = answers[0]
    assert is_agreed and "iteration 40: " in text and "rank 2 on " in text and f"(of {of})" in text
    # With two replicas nobody can say which of them is right.
    assert text.count("rank ") - text.count("rank 0 are") == (1 if of == 4 else 2)


def test_shards_without_replicas_are_not_compared():
    assert run_ranks(compared, 2, "fsdp2-all", 1) == [None, None]


def test_a_fingerprint_sees_every_bit_and_the_order():
    tensor = torch.arange(12.0).reshape(3, 4)
    seen = {fingerprint(tensor)}
    for place in range(12):
        other = tensor.clone()
        other.view(torch.int32).flatten()[place] ^= 1
        seen.add(fingerprint(other))
    seen |= {fingerprint(tensor.flip(0)), fingerprint(tensor.flip(1))}
    assert len(seen) == 15
    assert fingerprint(tensor.clone()) in seen and fingerprint(torch.empty(0)) == 0


def test_the_fewer_are_the_odd_ones():
    told = [["a", "1", f"n{rank // 2}"] for rank in range(4)] + [["b", "7", "n2"]]
    assert odd_ranks(told) == []
    told[2][1] = "2"
    assert odd_ranks(told) == ["rank 2 on n1 (of 4)"]
