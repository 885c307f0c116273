"""Makes the samples of a row: each once over all ranks, and none that is there already.

Batches are cut by the samples' numbers, whatever is there: rank r makes whole batches b with
b mod world = r. A batch of which a sample is missing is made again, and what is missing is kept: a
batch of other samples could have other roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from adrpo_scale.core import dist
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.signals import heard
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_sets import key_of
from adrpo_scale.evaluation import parts
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.row_folder import MANIFEST
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.samples import Sample, batches
from adrpo_scale.evaluation.sharing import free_memory, merge_all
from adrpo_scale.training.prompt_values import category_of


class Maker(Protocol):
    """A model that makes samples. identity: everything that they depend on, except prompt and key,
    as JSON; known before anything heavy is loaded. `prepare` and `close` are collective."""

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        """Loads the model. prompts: all that it will be asked, once, before `make`."""

    def make(self, samples: Sequence[Sample]) -> Sequence[Any]:
        """The artifact of each sample; None where there can be none."""

    def close(self) -> None:
        """Frees the memory of the model."""


class Kind(Protocol):
    """What differs between an evaluation of pictures and one of completions."""

    def maker(self, config: AskedConfig, row: Row, device: torch.device) -> Maker:
        """The maker of a row; reads configs and headers, no weights. Collective."""

    def keep(self, folder: Path, sample: Sample, artifact: Any) -> dict[str, Any]:
        """Writes an artifact into the row's folder; returns what its line says of it."""

    def is_kept(self, folder: Path, line: parts.Line) -> bool:
        """Whether the artifact of a line is there."""

    def artifact(self, folder: Path, line: parts.Line) -> Any:
        """The artifact of a line. Raises DamagedFileError where it is not what was written."""

    def finish(self, folder: Path, lines: Mapping[int, parts.Line]) -> None:
        """Writes what follows from all lines. On rank 0 alone."""

    def measures(self, lines: Mapping[int, parts.Line]) -> dict[str, dict[int, float | None]]:
        """Numbers of the samples that need no scorer, by name and number of the sample."""


def line_of(sample: Sample, of_artifact: Mapping[str, Any]) -> dict[str, Any]:
    """A sample's line of the manifest."""
    return {
        "id": sample.number,
        "set": sample.set,
        "prompt": sample.prompt.text,
        "prompt_id": sample.prompt.id,
        "category": category_of(sample.prompt),
        "seed": sample.seed,
        "sample": sample.member,
        **of_artifact,
    }


def made(kind: Kind, folder: Path) -> dict[int, parts.Line]:
    """The lines of the samples that are there, by number. On rank 0 alone."""
    lines = parts.merged(folder / MANIFEST)
    return {number: line for number, line in lines.items() if kind.is_kept(folder, line)}


def make_missing(
    kind: Kind,
    maker: Maker,
    folder: Path,
    samples: Sequence[Sample],
    there: Mapping[int, parts.Line],
    size: int,
    what: str,
    check: Callable[[], None],
) -> int:
    """Makes what is missing, and merges the manifest; returns the number of samples made by all
    ranks. check: raises where another process has taken over the folder. Collective."""
    cut = batches(samples, size)
    wanted = [b for b, batch in enumerate(cut) if any(s.number not in there for s in batch)]
    if not wanted:
        return 0
    maker.prepare(list({key_of(s.prompt): s.prompt for s in samples}.values()))
    pace, fresh = Pace(what, len(wanted), "batches"), []
    try:
        for b in wanted:
            if b % dist.world_size() != dist.rank():
                continue
            if heard():
                break
            artifacts = maker.make(cut[b])
            pairs = {s.number: (s, a) for s, a in zip(cut[b], artifacts, strict=True)}
            check()
            lines = [
                line_of(sample, kind.keep(folder, sample, artifact))
                for number, (sample, artifact) in pairs.items()
                if number not in there and artifact is not None
            ]
            parts.append(folder / MANIFEST, dist.rank(), lines)
            fresh += lines
            pace.step(dist.world_size())
    finally:
        maker.close()
        free_memory()
    return merge_all(folder / MANIFEST, fresh)
