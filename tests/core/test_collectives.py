"""The collectives of adrpo_scale.core.dist between real gloo processes, and alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as td

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from tests.support.ranks import run_ranks

BIG = 2**53 + 1  # the first integer that float64 cannot hold


@pytest.mark.parametrize("world", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("total", [0, 1, 4, 7, 64])
def test_blocks_cover_everything_once_and_differ_by_at_most_one(total, world):
    blocks = [dist.block(total, rank, world) for rank in range(world)]
    assert [row for rows in blocks for row in rows] == list(range(total))
    sizes = [len(rows) for rows in blocks]
    assert max(sizes) - min(sizes) <= 1


def own_rows(rank, world, dtype):
    """Row 10*r + i of rank r; rank 1 has none, the others r + 1."""
    count = 0 if rank == 1 else rank + 1
    return (torch.arange(count, dtype=dtype) + 10 * rank)[:, None].expand(-1, 3).contiguous()


def gathers_rows(rank, world, dtype):
    rows = own_rows(rank, world, dtype)
    before = rows.clone()
    gathered = dist.gather_rows(rows)
    expected = torch.cat([own_rows(r, world, dtype) for r in range(world)])
    assert torch.equal(rows, before)
    return gathered.dtype == dtype and torch.equal(gathered, expected)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float32])
def test_gather_rows_of_uneven_and_empty_ranks(world, dtype):
    assert all(run_ranks(gathers_rows, world, dtype))


def gathers_exact_values(rank, world):
    ids = dist.gather_rows(torch.tensor([BIG + rank]))
    third = torch.tensor([1 / 3 + rank], dtype=torch.float64)
    flags = dist.gather_rows(torch.tensor([rank == 0]))
    nothing = dist.gather_rows(torch.empty(0, 2))
    return ids.tolist(), dist.gather_rows(third).tolist(), flags.tolist(), tuple(nothing.shape)


@pytest.mark.parametrize("world", [1, 3])
def test_gather_rows_is_exact_for_large_ids_float64_flags_and_nothing(world):
    ids = [BIG + rank for rank in range(world)]
    thirds = [1 / 3 + rank for rank in range(world)]
    flags = [rank == 0 for rank in range(world)]
    assert run_ranks(gathers_exact_values, world) == [(ids, thirds, flags, (0, 2))] * world


def reduces(rank, world):
    value = torch.tensor([BIG, -rank, 2**rank])
    fraction = torch.tensor(0.1 * (rank + 1), dtype=torch.float64)
    copies = value.clone(), fraction.clone()
    answer = (
        dist.all_sum(value).tolist(),
        dist.all_max(value).tolist(),
        dist.all_sum(fraction).item(),
        dist.all_max(fraction).item(),
    )
    assert torch.equal(value, copies[0]) and torch.equal(fraction, copies[1])
    return answer


@pytest.mark.parametrize("world", [1, 2, 3])
def test_sum_and_max_are_exact_and_leave_their_input(world):
    sums = [world * BIG, -sum(range(world)), 2**world - 1]
    largest = [BIG, 0, 2 ** (world - 1)]
    for got in run_ranks(reduces, world):
        assert got[:2] == (sums, largest)
        assert got[2] == pytest.approx(0.1 * world * (world + 1) / 2, rel=1e-15)
        assert got[3] == 0.1 * world


def random_plan(random, world):
    """Rows per rank, and plan[s][r]: local rows that s sends to r (repeats allowed, also none)."""
    sizes = random.integers(0, 6, world)
    sends = random.integers(0, 5, (world, world)) * (random.random((world, world)) < 0.6)
    sends[sizes == 0] = 0  # who has nothing sends nothing
    plan = [
        [random.integers(0, max(1, sizes[s]), sends[s, r]) for r in range(world)]
        for s in range(world)
    ]
    return sizes, plan


def exchanges_random_plans(rank, world, dtype, plans):
    random = np.random.default_rng(world)  # the same plans on every rank
    for _ in range(plans):
        sizes, plan = random_plan(random, world)
        starts = np.concatenate([[0], sizes.cumsum()])
        everything = torch.from_numpy(random.integers(0, 2**40, (sizes.sum(), 2, 3))).to(dtype)
        mine = everything[starts[rank] : starts[rank + 1]]
        got = dist.exchange_rows(
            mine,
            [torch.from_numpy(rows) for rows in plan[rank]],
            [len(plan[sender][rank]) for sender in range(world)],
        )
        wanted = np.concatenate([plan[s][rank] + starts[s] for s in range(world)])
        assert torch.equal(got, everything[torch.from_numpy(wanted).long()])
    return plans


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_exchange_rows_equals_indexing_the_concatenated_rows(world, dtype):
    assert run_ranks(exchanges_random_plans, world, dtype, 25) == [25] * world


def everything_to_rank_zero(rank, world):
    rows = torch.full((rank, 2), float(rank))
    sources = [torch.arange(rank if r == 0 else 0) for r in range(world)]
    counts = [sender if rank == 0 else 0 for sender in range(world)]
    return dist.exchange_rows(rows, sources, counts)[:, 0].tolist()


def test_exchange_rows_where_one_rank_has_nothing_and_the_others_receive_nothing():
    assert run_ranks(everything_to_rank_zero, 3) == [[1.0, 2.0, 2.0], [], []]


def passes_objects(rank, world):
    own = {"rank": rank, "big": BIG, "text": "ü" * (rank * 1000)}
    return dist.gather_objects(own), dist.broadcast_object(own)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_objects_of_different_size_are_gathered_in_rank_order_and_broadcast(world):
    everyone = [{"rank": r, "big": BIG, "text": "ü" * (r * 1000)} for r in range(world)]
    assert run_ranks(passes_objects, world) == [(everyone, everyone[0])] * world


def passes_objects_to_main(rank, world):
    return dist.gather_objects({"rank": rank, "text": "ü" * (rank * 1000)}, to_main=True)


@pytest.mark.parametrize("world", [1, 3])
def test_objects_are_gathered_on_rank_zero_alone(world):
    everyone = [{"rank": r, "text": "ü" * (r * 1000)} for r in range(world)]
    assert run_ranks(passes_objects_to_main, world) == [everyone, [], []][:world]


def builds_on_main(rank, world):
    return dist.run_on_main(lambda: f"built by {dist.rank()}"), rank


def fails_on_main(rank, world):
    def build():
        raise ConfigError("only rank 0 can see that this is wrong")

    try:
        dist.run_on_main(build)
    except ConfigError as error:
        dist.barrier()  # the group still works
        return str(error)
    return "nothing was raised"


class StatusError(Exception):
    """Like those of HTTP clients: pickled, it cannot be read back."""

    def __init__(self, *, response):
        super().__init__(f"the hub answered {response}")


def fails_on_main_with(rank, world, kind):
    def build():
        if kind == "cannot be read back":
            raise StatusError(response=503)
        error = OSError("the disk of rank 0 is full")
        error.handle = lambda: None
        raise error

    try:
        dist.run_on_main(build)
    except Exception as error:
        dist.barrier()
        return str(error)
    return "nothing was raised"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_run_on_main_gives_its_result_or_its_error_to_every_rank(world):
    assert run_ranks(builds_on_main, world) == [("built by 0", rank) for rank in range(world)]
    assert run_ranks(fails_on_main, world) == ["only rank 0 can see that this is wrong"] * world


@pytest.mark.parametrize(
    ("kind", "text"),
    [("cannot be read back", "the hub answered 503"), ("cannot be pickled", "of rank 0 is full")],
)
def test_run_on_main_carries_errors_that_pickle_badly(kind, text):
    for message in run_ranks(fails_on_main_with, 3, kind, timeout=15):
        assert text in message


def leads(rank, world):
    def serve(question):
        return f"{question} of {dist.rank()}"

    def work(ask):
        assert dist.is_main()
        return [ask("left"), ask("right")]

    return dist.lead(work, serve)


def leads_into_an_error(rank, world):
    def work(ask):
        raise ConfigError(f"wrong by the answers {ask(2)}")

    try:
        dist.lead(work, lambda question: question * dist.rank())
    except ConfigError as error:
        dist.barrier()  # the group still works
        return str(error), error.agreed
    return "nothing was raised"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_lead_asks_every_rank_and_gives_its_result_or_its_error_to_all(world):
    sides = [[f"{side} of {rank}" for rank in range(world)] for side in ("left", "right")]
    assert run_ranks(leads, world) == [sides] * world
    message = f"wrong by the answers {[2 * rank for rank in range(world)]}"
    assert run_ranks(leads_into_an_error, world) == [(message, True)] * world


def knows_itself(rank, world):
    dist.barrier()
    return dist.rank(), dist.world_size(), dist.is_main(), td.is_initialized()


@pytest.mark.parametrize("world", [1, 3])
def test_rank_and_world_size_with_and_without_a_group(world):
    assert run_ranks(knows_itself, world) == [(r, world, r == 0, world > 1) for r in range(world)]


def enters_twice(rank, world):
    with dist.process_group("cpu") as facts:
        inner = facts.rank
    dist.barrier()  # leaving the inner context left the group alone
    return inner


def test_process_group_inside_a_process_group_is_the_same_one():
    assert run_ranks(enters_twice, 2) == [0, 1]
