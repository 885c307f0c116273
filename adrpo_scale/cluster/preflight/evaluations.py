"""An evaluation of MMAU as the target of a preflight; what it shares with other evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.cluster.preflight import checks
from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.cluster.preflight.cache import CacheNeed
from adrpo_scale.cluster.preflight.judging import alike, by_value, found
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.cluster.preflight.target import Judges, Target
from adrpo_scale.core.disk_space import free_space, shortage, size_text
from adrpo_scale.core.errors import AdrpoError, ConfigError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.data.clip_headers import clip_faults
from adrpo_scale.evaluation.file import load_evaluation, results_folder
from adrpo_scale.evaluation.mmau import local
from adrpo_scale.evaluation.mmau.base import Benchmark, MmauConfig, load_benchmark
from adrpo_scale.evaluation.mmau.evaluate import EvaluateOptions, find_subject
from adrpo_scale.evaluation.needs import bytes_here
from adrpo_scale.evaluation.sample import Source
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.sweep_record import runs_folder

_ANSWER_BYTES = 8192  # of a question's lines in all files, its answer included
_NAMED = 3


def evaluation_target(
    file: Path, overrides: Sequence[str], folder: Path | None, model: str | None
) -> Target:
    """The target of an evaluation file. model: of `--model`. Raises ConfigError."""
    config = load_evaluation(file, overrides)
    if not isinstance(config, MmauConfig):
        if model is not None:
            raise ConfigError(f"--model {model}: the models of {file} are its [models.NAME]")
        from adrpo_scale.cluster.preflight.asked import AskedTarget

        return AskedTarget(config, (folder or results_folder(config, file)).absolute())
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


# ---- checks that evaluations share -------------------------------------------------------------


def prompts_fault(text: str) -> Finding:
    return Finding("fault", text, "prompt files whose rows can all be read", "the line says where")


def models_check(nodes: Sequence[Node], needs: Sequence[HubNeed], fault: object) -> Check:
    """fault: gives why a model that is here cannot be used, or None; asked once all are here."""
    check = checks.check_models(nodes, len(needs))
    if check.findings or not callable(fault):
        return check
    why = fault()
    if why is None:
        return check
    expected, remedy = "a model that can be judged", "the line says what helps"
    return checks.check_models(nodes, len(needs), [Finding("fault", why, expected, remedy)])


def space_check(folder: Path, size: int, files: int) -> Check:
    """Room for the results: `size` bytes in `files` files."""
    try:
        space = free_space(folder)
    except AdrpoError as error:
        remedy = "choose another folder for the results"
        return Check("space", "", (Finding("fault", str(error), "a number of bytes", remedy),))
    free = f"{size_text(space.free_bytes)} free by the {space.source}"
    stated = f"{free}; at most {size_text(size)} in {counted(files, 'file')} of results"
    lack = shortage(space, size, files)
    if lack is None:
        return Check("space", stated)
    remedy = "make room, or choose another folder for the results"
    return Check("space", "", (Finding("fault", f"{folder}: {free}", lack, remedy),))


def memory_check(nodes: Sequence[Node], needs: Sequence[HubNeed]) -> Check:
    """Host memory for the largest model, which passes through it while it is loaded."""
    largest = max(map(bytes_here, needs), default=0)

    def lack(node: Node) -> str | None:
        free = node.facts.memory
        is_short = free is not None and free < largest
        return f"{size_text(free)} of host memory free" if free is not None and is_short else None

    stated = f"{size_text(largest)} of the largest model"
    findings = [
        found(bad, nodes, "warning", value, stated, "ask for more memory: sbatch --mem")
        for value, bad in alike(by_value(nodes, lack))
    ]
    return Check("memory", f"loading takes {stated}", tuple(findings))
