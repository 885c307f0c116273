"""Randomness is a function of (seed, iteration, update, draw, sample id, purpose)."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adrpo_scale.core.seeding import Purpose, derive_seed, generator, normal, permutation, uniform
from adrpo_scale.core.types import DrawKey

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "seeding.json").read_text())
KEY = DrawKey(seed=7, iteration=3, update=1, draw=2)
int64s = st.integers(-(2**63), 2**63 - 1)


def test_golden_numbers():
    """If this fails, no earlier run can be resumed bit-exactly any more: do not edit the file."""
    assert {purpose.name: purpose.value for purpose in Purpose} == GOLDEN["purposes"]
    assert [derive_seed(0), derive_seed(1, 2), derive_seed(2, 1), derive_seed(5, text="embed")] == (
        GOLDEN["derive_seed"]
    )
    assert permutation(8, 1, 2, 3).tolist() == GOLDEN["permutation"]
    assert uniform(KEY, [0, 1, 1000], Purpose.TRAIN_TIME).tolist() == GOLDEN["uniform"]
    # randn goes through the platform's log and cos.
    torch.testing.assert_close(
        normal(KEY, [0, 1000], Purpose.TRAIN_NOISE, (3,)), torch.tensor(GOLDEN["normal"])
    )


@given(st.lists(int64s, max_size=6), st.text(max_size=8))
def test_a_seed_is_63_bits_and_depends_on_its_arguments_alone(integers, text):
    seed = derive_seed(*integers, text=text)
    assert 0 <= seed < 2**63
    random.random(), torch.rand(3)
    assert derive_seed(*integers, text=text) == seed


@given(st.lists(st.integers(0, 50), min_size=2, max_size=5))
def test_the_place_of_an_integer_matters(integers):
    if integers != integers[::-1]:
        assert derive_seed(*integers) != derive_seed(*integers[::-1])


def test_every_field_and_every_purpose_changes_the_draw():
    fields = range(3)
    drawn = {
        generator(DrawKey(seed, iteration, update, draw), sample, purpose).initial_seed()
        for seed in fields
        for iteration in fields
        for update in fields
        for draw in fields
        for sample in fields
        for purpose in Purpose
    }
    assert len(drawn) == 3**5 * len(Purpose)


def test_the_same_draw_twice_and_with_other_random_state_between():
    first = normal(KEY, [5, 6], Purpose.ROLLOUT_NOISE, (2, 3))
    torch.manual_seed(0), torch.rand(10)
    assert torch.equal(normal(KEY, [5, 6], Purpose.ROLLOUT_NOISE, (2, 3)), first)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    normal(KEY, range(4), Purpose.TOKEN, (2,)), uniform(KEY, range(4), Purpose.TOKEN)
    permutation(10, 1)
    assert torch.equal(torch.get_rng_state(), before)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=8, unique=True), st.data())
def test_a_row_is_the_same_whichever_rank_draws_it(ids, data):
    some = data.draw(st.lists(st.sampled_from(range(len(ids))), max_size=8))
    chosen = [ids[place] for place in some]
    everything = normal(KEY, ids, Purpose.ROLLOUT_NOISE, (2, 2))
    assert torch.equal(normal(KEY, chosen, Purpose.ROLLOUT_NOISE, (2, 2)), everything[some])
    times = uniform(KEY, ids, Purpose.TRAIN_TIME)
    assert torch.equal(uniform(KEY, chosen, Purpose.TRAIN_TIME), times[some])


def test_ids_may_come_as_a_tensor():
    ids = torch.tensor([3, 2**60])
    assert torch.equal(uniform(KEY, ids, Purpose.TOKEN), uniform(KEY, [3, 2**60], Purpose.TOKEN))


def test_no_samples_give_empty_rows_of_the_right_shape():
    assert normal(KEY, [], Purpose.TOKEN, (4, 5)).shape == (0, 4, 5)
    assert uniform(KEY, [], Purpose.TOKEN).shape == (0,)


def test_draws_look_normal_and_uniform():
    noise = normal(KEY, range(2000), Purpose.TRAIN_NOISE, (5,))
    assert noise.dtype == torch.float32
    assert noise.mean().item() == pytest.approx(0, abs=0.04)
    assert noise.std().item() == pytest.approx(1, abs=0.04)
    times = uniform(KEY, range(2000), Purpose.TRAIN_TIME)
    assert times.min() >= 0 and times.max() < 1
    assert times.mean().item() == pytest.approx(0.5, abs=0.03)


@given(st.integers(0, 40), st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_a_permutation_holds_each_number_once_and_is_repeatable(n, integers):
    order = permutation(n, *integers)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(permutation(n, *integers), order)


def test_permutations_of_different_epochs_differ():
    assert len({tuple(permutation(20, 1, epoch).tolist()) for epoch in range(50)}) == 50
