"""The plan of an evaluation of pictures or completions: samples, memory, GPU-hours, disk.

It counts from the sizes of the weight files that are here, as published, at two bytes a parameter.
A picture takes 2 FLOPs a parameter of the transformer, latent token (a square of 16 pixels) and
pass; a token reads all weights once for the whole batch. What activations and text encoders take is
not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from adrpo_scale.cluster.plan import memory
from adrpo_scale.cluster.plan.base import GIB, DoesNotFitError, Hardware
from adrpo_scale.cluster.plan.times import BANDWIDTH, DISK, START
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.needs import needs_of_row, weights_here
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.size import (
    bytes_of,
    guidance_of,
    samples_of_row,
    side_of,
    steps_of,
    tokens_of,
)

_PARAMETER = 2  # bytes, as published
_PATCH = 16  # pixels of a latent token's side
_SEEN = 300  # tokens that a scorer reads of a sample: a picture of 224 pixels, or a text
_BODIES = ("transformer", "unet")


@dataclass(frozen=True)
class Part:
    """A model that is loaded on its own. bytes: its weights; 0: they are not here. seconds: of one
    GPU, for one sample; samples: how many."""

    name: str
    bytes: int
    seconds: float
    samples: int


@dataclass(frozen=True)
class EvaluationPlan:
    """rows and scorers are loaded one after another. bytes: of the results, at most."""

    gpu: str
    gpus: int
    rows: Sequence[Part]
    scorers: Sequence[Part]
    samples: int
    bytes: int
    usable: int

    @property
    def parts(self) -> list[Part]:
        return [*self.rows, *self.scorers]

    @property
    def peak(self) -> Part:
        return max(self.parts, key=lambda part: part.bytes)

    @property
    def gpu_hours(self) -> float:
        computed = sum(part.samples * part.seconds for part in self.parts)
        loaded = sum(START * bool(part.bytes) + part.bytes / DISK for part in self.parts)
        return (computed + loaded * self.gpus) / 3600

    @property
    def absent(self) -> list[str]:
        """The models whose weights are not here."""
        return [part.name for part in self.rows if not part.bytes]


def plan_evaluation(
    config: AskedConfig, rows: Sequence[Row], prompts: int, hardware: Hardware
) -> EvaluationPlan:
    """rows: of `rows_of`. prompts: of all sets."""
    count = samples_of_row(config, prompts)
    return EvaluationPlan(
        hardware.gpu.name,
        hardware.world,
        [_row(config, row, count, hardware) for row in rows],
        [*_scorers(config, count * len(rows), hardware)],
        count * len(rows),
        bytes_of(config, rows, prompts),
        memory.usable(hardware),
    )


def require_fit(plan: EvaluationPlan) -> None:
    """Raises DoesNotFitError where the weights of a model alone are more than a GPU has."""
    if plan.peak.bytes > plan.usable:
        raise DoesNotFitError(
            f"{plan.peak.name} does not fit: its weights take {plan.peak.bytes / GIB:.1f} GiB of a "
            f"{plan.gpu}, which has {plan.usable / GIB:.1f}; plan with a larger one, e.g. --gpu "
            "a100-80"
        )


def _row(config: AskedConfig, row: Row, count: int, hardware: Hardware) -> Part:
    whole, body = 0, 0
    for need in needs_of_row(config, row):
        for name, size in weights_here(need):
            whole += size
            is_body = config.MEDIUM != "pictures" or name.startswith(_BODIES)
            body += size if is_body else 0
    if config.MEDIUM == "pictures":
        tokens = max(1, side_of(row) // _PATCH) ** 2
        passes = steps_of(row) * (2 if guidance_of(row) > 1 else 1)
        seconds = _computed(body / _PARAMETER * tokens * passes, hardware)
    else:
        read = body / (hardware.gpu.hbm * BANDWIDTH)
        seconds = tokens_of(row) * read / config.sampling.batch
    return Part(f"models.{row.name}", whole, seconds, count)


def _scorers(config: AskedConfig, count: int, hardware: Hardware) -> Iterator[Part]:
    for scorer in config.scorers:
        sizes = [size for need in scorer.needs_from_hub() for _, size in weights_here(need)]
        seconds = _computed(sum(sizes) / _PARAMETER * _SEEN, hardware)
        yield Part(f"scorer {scorer.label}", sum(sizes), seconds, count)


def _computed(parameter_tokens: float, hardware: Hardware) -> float:
    gpu = hardware.gpu
    return 2 * parameter_tokens / (gpu.flops["bfloat16"] * gpu.efficiency)


def lines(plan: EvaluationPlan) -> list[str]:
    """The plan as text."""
    found = [
        f"{len(plan.rows)} rows · {plan.samples:,} samples · {plan.gpu_hours:.2g} GPU-hours · "
        f"{plan.gpu_hours / plan.gpus:.2g} hours on {plan.gpus} {plan.gpu} · at most "
        f"{size_text(plan.bytes)} on disk"
    ]
    for part in plan.parts:
        weights = f"{size_text(part.bytes)} of weights" if part.bytes else "no weights here"
        found.append(
            f"{part.name}: {weights}, {part.samples:,} samples of {part.seconds:.2g} GPU-seconds"
        )
    found.append(
        f"one after another: at most {size_text(plan.peak.bytes)} of weights at once, of "
        f"{size_text(plan.usable)}; activations and text encoders not counted"
    )
    if plan.absent:
        found.append(
            f"not counted, because their weights are not here: {', '.join(plan.absent)}; bring "
            "them with `adrpo-scale prefetch`"
        )
    return found


def facts(plan: EvaluationPlan) -> dict[str, Any]:
    """The plan for programs."""
    return {**asdict(plan), "gpu_hours": plan.gpu_hours, "absent": plan.absent}
