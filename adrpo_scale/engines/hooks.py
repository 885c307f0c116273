"""Forward hooks of the libraries that shard, taken off for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager

from torch import nn


@contextmanager
def without_hooks(modules: Iterable[nn.Module], ids: Set[int]) -> Iterator[None]:
    """A context in which forward passes run without the hooks of these ids.

    Hooks gather and free each module's parameters: where these are whole already, they cost time at
    every module of every token, and a rank with one more pass than the others would wait in them
    forever.
    """
    tables = [t for m in modules for t in (m._forward_pre_hooks, m._forward_hooks)]
    before = [dict(table) for table in tables]
    for table in tables:
        for key in ids & table.keys():
            del table[key]
    try:
        yield
    finally:
        for table, original in zip(tables, before, strict=True):
            added = {k: hook for k, hook in table.items() if k not in original}
            table.clear()
            table.update({**original, **added})
