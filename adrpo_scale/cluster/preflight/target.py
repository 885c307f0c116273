"""What a preflight checks beside the nodes: a run, the runs of a sweep, or an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from adrpo_scale.cluster.preflight.base import Check
from adrpo_scale.cluster.preflight.cache import CacheNeed
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.hub.needs import HubNeed

Judges = Mapping[str, Callable[[], Check]]


class Target(Protocol):
    """title: what it is, for the first line. folder: of the results. device: `engine.device`."""

    @property
    def title(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def device(self) -> str: ...

    @property
    def needs(self) -> Sequence[HubNeed]: ...

    def cache(self) -> CacheNeed:
        """What it adds to the cache; the prompts are read for it."""

    def judges(
        self, nodes: list[Node], cache: CacheNeed, ranks: tuple[int, int], seconds: float
    ) -> Judges:
        """The checks of `run.OWN`, by name. ranks: (of all nodes, of one). seconds: time limit of
        a call of other people's code."""
