"""The helper itself: what a failing rank looks like in a test."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch
import torch.distributed as td

from adrpo_scale.core import dist
from tests.support.ranks import PRELOAD, THREADS, RankError, run_ranks


def who_am_i(rank, world, extra):
    facts = dist.rank_facts()
    return facts.rank, facts.local_rank, facts.world, td.is_initialized(), extra


def fails_on_rank_one(rank, world):
    if rank == 1:
        raise ValueError("the shard of rank 1 is upside down")
    dist.barrier()


def one_rank_is_late(rank, world):
    if rank == 1:
        time.sleep(60)
    dist.barrier()


def dies(rank, world):
    if rank == 1:
        os._exit(3)
    dist.barrier()


def not_imported(rank, world):
    return [name for name in PRELOAD if name not in sys.modules], torch.get_num_threads()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_results_come_in_rank_order(world):
    got = run_ranks(who_am_i, world, "more")
    assert got == [(rank, rank, world, world > 1, "more") for rank in range(world)]


def test_the_traceback_of_a_failing_rank_reaches_the_test():
    with pytest.raises(RankError, match=r"(?s)rank 1 of 3.*fails_on_rank_one.*upside down"):
        run_ranks(fails_on_rank_one, 3)


@pytest.mark.slow  # ten seconds of waiting
def test_a_hang_ends_at_the_timeout_and_says_where():
    start = time.monotonic()
    with pytest.raises(RankError, match=r"(?s)ranks \[0, 1\] of 2.*barrier.*one_rank_is_late"):
        run_ranks(one_rank_is_late, 2, timeout=10)
    assert time.monotonic() - start < 50


def test_a_rank_that_dies_ends_the_others():
    start = time.monotonic()
    with pytest.raises(RankError):
        run_ranks(dies, 2)
    assert time.monotonic() - start < 50


def test_everything_in_preload_is_there_at_the_fork():
    assert run_ranks(not_imported, 1) == [([], int(THREADS))]
