"""Runs, and the runs of a sweep, as the targets of a preflight."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adrpo_scale.cluster.preflight import checks
from adrpo_scale.cluster.preflight.base import Check, counted
from adrpo_scale.cluster.preflight.cache import CacheNeed, cache_need, check_cache, check_prompts
from adrpo_scale.cluster.preflight.estimate import bytes_beside, space_check
from adrpo_scale.cluster.preflight.host import check_host
from adrpo_scale.cluster.preflight.models import model_findings
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.cluster.preflight.rewards import rewards_check
from adrpo_scale.cluster.preflight.target import Judges
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.sweep_runs import SweepRun


@dataclass(frozen=True)
class RunTarget:
    """A run and its folder."""

    config: RunConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"run folder {self.folder}"

    @property
    def device(self) -> str:
        return self.config.engine.device

    @property
    def needs(self) -> Sequence[HubNeed]:
        return self.config.needs_from_hub()

    def cache(self) -> CacheNeed:
        return cache_need(self.config)

    def judges(
        self, nodes: list[Node], cache: CacheNeed, ranks: tuple[int, int], seconds: float
    ) -> Judges:
        config, run = self.config, self.folder

        def check_disk_of_cache() -> Check:
            return check_cache(nodes, cache, bytes_beside(config, run, cache.folder))

        return {
            "models": lambda: self._models(nodes),
            "rewards": lambda: rewards_check(config, run, seconds),
            "space": lambda: space_check(config, run, ranks[0]),
            "prompts": lambda: check_prompts(cache),
            "cache": check_disk_of_cache,
            "memory": lambda: check_host(nodes, config, ranks, cache.bytes),
        }

    def _models(self, nodes: list[Node]) -> Check:
        """Also asks this node, as `train` does, once the models are there: a look-up of one that
        is not would download it."""
        number = len(self.needs)
        check = checks.check_models(nodes, number)
        if check.findings:
            return check
        return checks.check_models(nodes, number, model_findings(self.config, self.folder))


@dataclass(frozen=True)
class SweepTarget:
    """All runs of a sweep. Of runs that differ in their seed alone, the first is checked."""

    runs: Sequence[SweepRun]
    folder: Path

    @cached_property
    def _parts(self) -> list[RunTarget]:
        different: dict[str, RunTarget] = {}
        for run in self.runs:
            config = run.loaded.config
            key = json.dumps(config.resolved() | {"seed": None}, sort_keys=True)
            different.setdefault(key, RunTarget(config, run.folder.absolute()))
        return [*different.values()]

    @property
    def title(self) -> str:
        return f"{counted(len(self.runs), 'run')} in {self.folder}"

    @property
    def device(self) -> str:
        return self._parts[0].device

    @property
    def needs(self) -> Sequence[HubNeed]:
        return joined(need for part in self._parts for need in part.needs)

    @cached_property
    def _caches(self) -> list[CacheNeed]:
        return [part.cache() for part in self._parts]

    def cache(self) -> CacheNeed:
        """The largest of the runs': equal prompts are kept once."""
        return max(self._caches, key=lambda need: need.bytes if need.bytes is not None else -1)

    def judges(
        self, nodes: list[Node], cache: CacheNeed, ranks: tuple[int, int], seconds: float
    ) -> Judges:
        caches = self._caches if cache.folder is not None else [cache for _ in self._parts]
        of_parts = [
            part.judges(nodes, own, ranks, seconds)
            for part, own in zip(self._parts, caches, strict=True)
        ]
        return {name: _joint(name, of_parts) for name in of_parts[0]}


def _joint(name: str, of_parts: Sequence[Judges]) -> Callable[[], Check]:
    """A check of all runs: what the first states, and each finding once."""

    def judge() -> Check:
        found = [judges[name]() for judges in of_parts]
        findings = dict.fromkeys(finding for check in found for finding in check.findings)
        count = f"each of {len(found)} kinds of run: " if len(found) > 1 else ""
        return Check(name, f"{count}{found[0].stated}", tuple(findings))

    return judge
