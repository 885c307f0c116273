"""An evaluation of MMAU as the target of a preflight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.cluster.preflight.cache import CacheNeed
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.cluster.preflight.result_checks import (
    memory_check,
    models_check,
    prompts_fault,
    space_check,
)
from adrpo_scale.cluster.preflight.target import Judges
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.data.clip_headers import clip_faults
from adrpo_scale.evaluation.mmau import local
from adrpo_scale.evaluation.mmau.base import Benchmark, MmauConfig, load_benchmark
from adrpo_scale.evaluation.mmau.evaluate import EvaluateOptions, find_subject
from adrpo_scale.evaluation.sample import Source
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.sweep_record import runs_folder

_ANSWER_BYTES = 8192  # of a question's lines in all files, its answer included
_NAMED = 3


@dataclass(frozen=True)
class MmauTarget:
    """Questions to a model. model, source: None for an endpoint."""

    config: MmauConfig
    folder: Path
    model: str | None
    source: Source | None

    @property
    def title(self) -> str:
        return f"results in {self.folder}"

    @property
    def device(self) -> str:
        return "auto" if self.source is None else self.source.config.engine.device

    @cached_property
    def needs(self) -> Sequence[HubNeed]:
        return [] if self.source is None else self.source.config.domain.needs_from_hub()

    def cache(self) -> CacheNeed:
        return CacheNeed(None)

    def judges(
        self, nodes: list[Node], cache: CacheNeed, ranks: tuple[int, int], seconds: float
    ) -> Judges:
        return {
            "models": lambda: models_check(nodes, self.needs, self._fault_of_model),
            "rewards": lambda: Check("rewards", "none: answers are compared with the options"),
            "space": lambda: space_check(self.folder, _ANSWER_BYTES * self._count, 8),
            "prompts": self._questions,
            "cache": lambda: Check("cache", "the evaluation adds nothing to it"),
            "memory": lambda: memory_check(nodes, self.needs),
        }

    @property
    def _count(self) -> int:
        try:
            return len(self._benchmark().questions)
        except AdrpoError:
            return 0

    def _benchmark(self) -> Benchmark:
        return load_benchmark(resolve_path(self.config.data), self.config.variant)

    def _fault_of_model(self) -> str | None:
        if self.model is None:
            return None
        try:
            local.find_local(self.model, self.config)
        except AdrpoError as error:
            return str(error)
        return None

    def _questions(self) -> Check:
        try:
            benchmark = self._benchmark()
            prompts = [question.prompt for question in benchmark.questions]
            faults = clip_faults(prompts)
        except AdrpoError as error:
            return Check("prompts", "", (prompts_fault(str(error)),))
        stated = f"{counted(len(prompts), 'question')} of revision {benchmark.revision}"
        if not faults:
            return Check("prompts", stated)
        some = "; ".join(list(faults.values())[:_NAMED])
        value = f"{len(faults)} of {counted(len(prompts), 'clip')} cannot be read: {some}"
        remedy = "bring them; a question without its clip counts as wrong"
        finding = Finding("warning", value, "clips that can be read", remedy)
        return Check("prompts", stated, (finding,))


def mmau_target(config: MmauConfig, folder: Path | None, model: str | None) -> MmauTarget:
    """folder: of `--run-dir`. model: of `--model`. Raises ConfigError for a model that does not
    hear."""
    if model is None:
        return MmauTarget(config, (folder or runs_folder()).absolute(), None, None)
    name = every_checkpoint(model)[-1]
    source = local.hearing_source(name, config)
    return MmauTarget(config, _folder(config, name, folder).absolute(), name, source)


def _folder(config: MmauConfig, name: str, folder: Path | None) -> Path:
    if folder is not None:
        return folder
    try:
        return find_subject(EvaluateOptions(Path(), model=name), config).folder
    except AdrpoError:  # the check of models names it
        return runs_folder()
