"""Fake tensors and fake process groups, on which `plan` rehearses engines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as td
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.testing._internal.distributed.fake_pg import FakeStore

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.engines.planning import Ranks


@contextmanager
def without_memory() -> Iterator[None]:
    """A context of fake tensors; real ones (buffers) that meet them are treated as fake."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def with_memory() -> Any:
    """A context of real tensors inside `without_memory()`, for building on the meta device."""
    return unset_fake_temporarily()


@contextmanager
def fake_ranks(ranks: Ranks) -> Iterator[None]:
    """A context in which this process is rank `ranks.rank` and collectives do nothing.

    Raises ConfigError inside a real process group.
    """
    if td.is_initialized():
        raise ConfigError("plan was called inside a process group; call it where there is none")
    rank, world, per_node = ranks.rank, ranks.world, ranks.per_node
    facts = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank % per_node}
    facts |= {"LOCAL_WORLD_SIZE": min(per_node, world)}
    before = {name: os.environ.get(name) for name in facts}
    threads = torch.get_num_threads()
    os.environ.update({name: str(value) for name, value in facts.items()})
    if world > 1:
        td.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        if td.is_initialized():
            td.destroy_process_group()
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
