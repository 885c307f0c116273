"""Completions of an evaluation: written, kept in the manifest, and read again for another scorer.

A completion's text stands in its line of the manifest, so that one write keeps both.
`completions.jsonl` follows from the manifest, for readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.errors import ConfigError, DamagedFileError
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import json_line
from adrpo_scale.core.types import Completion, Prompt
from adrpo_scale.evaluation.asked import AskedConfig, TextConfig, TextModel
from adrpo_scale.evaluation.language.writers import WriterModel, writer_of
from adrpo_scale.evaluation.parts import Line
from adrpo_scale.evaluation.row_folder import COMPLETIONS
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.samples import Sample

_SHOWN = ("id", "set", "prompt", "prompt_id", "seed", "sample", "text", "finished", "length")


class Writing:
    """A writer as the maker of samples."""

    def __init__(self, config: TextConfig, row: Row, device: torch.device) -> None:
        self._writer = writer_of(model_of(row), config.sampling.tokens, device)

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._writer.identity

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        self._writer.prepare(prompts)

    def make(self, samples: Sequence[Sample]) -> list[Completion | None]:
        prompts = [sample.prompt for sample in samples]
        return self._writer.write(prompts, [sample.key for sample in samples])

    def close(self) -> None:
        self._writer.close()


def model_of(row: Row) -> WriterModel:
    """A row's model, as writers are named."""
    model = row.model
    chat = model.chat if isinstance(model, TextModel) else {}
    if row.run is not None:
        weights = str(row.of["weights"])
        return WriterModel(run=row.run, weights=weights, dtype=model.dtype, chat=chat)
    return WriterModel(
        pipeline=model.pipeline,
        revision=model.revision,
        lora=model.lora,
        dtype=model.dtype,
        chat=chat,
    )


class Completions:
    """The kind of evaluations of completions; see `making.Kind`."""

    def maker(self, config: AskedConfig, row: Row, device: torch.device) -> Writing:
        if not isinstance(config, TextConfig):
            raise ConfigError('completions are those of a file with benchmark = "text"')
        return Writing(config, row, device)

    def keep(self, folder: Path, sample: Sample, artifact: Completion) -> dict[str, Any]:
        return {
            "text": artifact.text,
            "finished": artifact.finished,
            "length": len(artifact.tokens),
            "sha256": _sha256(artifact.text),
        }

    def is_kept(self, folder: Path, line: Line) -> bool:
        return isinstance(line.get("text"), str)

    def artifact(self, folder: Path, line: Line) -> Completion:
        text = str(line["text"])
        if _sha256(text) != line.get("sha256"):
            raise DamagedFileError(
                f"{folder}: sample {line.get('id')} is not the completion that was written (its "
                "SHA-256 differs): delete its line of manifest.jsonl, and the same command writes "
                "it again"
            )
        return Completion(text, finished=bool(line.get("finished")))

    def finish(self, folder: Path, lines: Mapping[int, Line]) -> None:
        shown = [{name: line.get(name) for name in _SHOWN} for line in lines.values()]
        replace_file(folder / COMPLETIONS, b"".join(map(json_line, shown)))

    def measures(self, lines: Mapping[int, Line]) -> dict[str, dict[int, float | None]]:
        """The length in tokens, and whether a completion was cut off, as a run's evaluations
        measure them."""
        return {
            "completion_tokens": {n: float(line["length"]) for n, line in lines.items()},
            "truncated": {n: float(not line["finished"]) for n, line in lines.items()},
        }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
