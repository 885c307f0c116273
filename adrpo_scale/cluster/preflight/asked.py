"""An evaluation of pictures or completions as the target of a preflight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.cluster.preflight.cache import CacheNeed, check_cache
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.cluster.preflight.result_checks import (
    memory_check,
    models_check,
    prompts_fault,
    space_check,
)
from adrpo_scale.cluster.preflight.target import Judges
from adrpo_scale.core.caches import cache_root
from adrpo_scale.core.errors import AdrpoError, together
from adrpo_scale.core.types import Prompt
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.needs import needs_of_rows
from adrpo_scale.evaluation.rows import Row, rows_of
from adrpo_scale.evaluation.size import bytes_of, files_of, sets_of
from adrpo_scale.hub.needs import HubNeed, joined
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.registry import DOMAINS, REWARDS
from adrpo_scale.run.rewards import SIDE, checked_judge, is_own_code, try_on


@dataclass(frozen=True)
class AskedTarget:
    """An evaluation, and the folder of its results."""

    config: AskedConfig
    folder: Path

    @property
    def title(self) -> str:
        return f"{counted(len(self._rows), 'row')}, results in {self.folder}"

    @property
    def device(self) -> str:
        return "auto"

    @cached_property
    def _rows(self) -> Sequence[Row]:
        return rows_of(self.config.rows)

    @cached_property
    def needs(self) -> Sequence[HubNeed]:
        return joined([*self.config.needs_from_hub(), *needs_of_rows(self.config, self._rows)])

    @cached_property
    def _prompts(self) -> list[Prompt] | str:
        """All prompts, or why they cannot be read."""
        try:
            return [prompt for one in sets_of(self.config) for prompt in one.prompts]
        except AdrpoError as error:
            return str(error)

    @property
    def _readable(self) -> list[Prompt]:
        return [] if isinstance(self._prompts, str) else self._prompts

    def cache(self) -> CacheNeed:
        """What runs add to it; other people's pipelines keep nothing there."""
        try:
            folder = cache_root()
            sizes = [self._cached(row) for row in self._rows]
        except AdrpoError as error:
            return CacheNeed(None, faults=(str(error),))
        known = [size for size in sizes if size is not None]
        return CacheNeed(folder, max(known) if known else None, len(self._readable))

    def _cached(self, row: Row) -> int | None:
        if row.config is None:
            return None
        run = parse_config(row.config)
        try:
            domain = DOMAINS[run.domain.name]
            return domain.bytes_to_cache(run.domain, self._readable, DTYPES[run.engine.dtype])
        except AdrpoError:  # the model is not here, which the check of models reports
            return None

    def judges(
        self, nodes: list[Node], cache: CacheNeed, ranks: tuple[int, int], seconds: float
    ) -> Judges:
        return {
            "models": lambda: models_check(nodes, self.needs, None),
            "rewards": lambda: self._scorers(seconds),
            "space": self._space,
            "prompts": self._sets,
            "cache": lambda: check_cache(nodes, cache, 0),
            "memory": lambda: memory_check(nodes, self.needs),
        }

    def _scorers(self, seconds: float) -> Check:
        """Their code, rows and, of those that load no model, a call on made-up samples."""
        try:
            warnings = self._tried(seconds)
        except AdrpoError as error:
            expected = "code that can be called as a scorer, and rows that it can score"
            fault = Finding("fault", str(error), expected, "see the end of each line")
            return Check("rewards", "", (fault,))
        found = [
            Finding("warning", line, "numbers for made-up samples", "look at its errors")
            for line in warnings
        ]
        stated = f"{counted(len(self.config.scorers), 'scorer')}, code and rows"
        return Check("rewards", stated, tuple(found))

    def _tried(self, seconds: float) -> list[str]:
        """seconds: time limit of a call of other people's code."""
        scorers = self.config.scorers
        for scorer in scorers:
            REWARDS[scorer.kind].check_code(scorer)
        limited = [
            scorer.model_copy(update={"time_limit": scorer.time_limit or seconds})
            if is_own_code(REWARDS[scorer.kind])
            else scorer
            for scorer in scorers
            if REWARDS[scorer.kind].is_light
        ]
        device, prompts = torch.device("cpu"), self._readable
        calls = [lambda one=one: checked_judge(one, device, prompts) for one in limited]
        judges = together(*calls)
        return try_on(judges, self.config.MEDIUM, (SIDE, SIDE), prompts) if prompts else []

    def _space(self) -> Check:
        count = len(self._readable)
        size = bytes_of(self.config, self._rows, count)
        return space_check(self.folder, size, files_of(self.config, self._rows, count))

    def _sets(self) -> Check:
        if isinstance(self._prompts, str):
            return Check("prompts", "", (prompts_fault(self._prompts),))
        sets = counted(len(self.config.prompts), "set")
        return Check("prompts", f"{counted(len(self._prompts), 'prompt')} in {sets}")
