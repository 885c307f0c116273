"""Pictures of an evaluation: painted, kept as PNG files, and read again for another scorer."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adrpo_scale.core.errors import DamagedFileError
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import read_regular
from adrpo_scale.core.types import Prompt
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.images.models import Model, PipelineModel, RunModel
from adrpo_scale.evaluation.images.painters import painter_of
from adrpo_scale.evaluation.parts import Line
from adrpo_scale.evaluation.row_folder import IMAGES, image_file
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.samples import Sample


class Painting:
    """A painter as the maker of samples."""

    def __init__(self, row: Row, device: torch.device) -> None:
        self._painter = painter_of(model_of(row), device)

    @property
    def identity(self) -> Mapping[str, Any]:
        return self._painter.identity

    def prepare(self, prompts: Sequence[Prompt]) -> None:
        self._painter.prepare([prompt.text for prompt in prompts])

    def make(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        texts = [sample.prompt.text for sample in samples]
        return self._painter.paint(texts, [sample.key for sample in samples])

    def close(self) -> None:
        self._painter.close()


def model_of(row: Row) -> Model:
    """A row's model, as painters are named."""
    if row.run is not None:
        return RunModel(row.run, str(row.of["weights"]), **row.model.given)
    return pipeline_of(row)


def pipeline_of(row: Row) -> PipelineModel:
    """The pipeline of a row whose model is no run."""
    model = row.model
    return PipelineModel(str(model.pipeline), model.revision, model.lora, **model.given)


class Images:
    """The kind of evaluations of pictures; see `making.Kind`."""

    def maker(self, config: AskedConfig, row: Row, device: torch.device) -> Painting:
        return Painting(row, device)

    def keep(self, folder: Path, sample: Sample, artifact: np.ndarray) -> dict[str, Any]:
        content = io.BytesIO()
        Image.fromarray(artifact).save(content, "PNG")
        path = folder / image_file(sample.number)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, content.getvalue(), durable=False)
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        return {"file": image_file(sample.number), "sha256": digest}

    def is_kept(self, folder: Path, line: Line) -> bool:
        file = line.get("file")
        return isinstance(file, str) and file.startswith(f"{IMAGES}/") and (folder / file).is_file()

    def artifact(self, folder: Path, line: Line) -> np.ndarray:
        path = folder / str(line["file"])
        try:
            content = read_regular(path)
        except OSError as error:
            raise DamagedFileError(f"{path} cannot be read ({error})") from error
        if hashlib.sha256(content).hexdigest() != line.get("sha256"):
            raise DamagedFileError(
                f"{path} is not the picture that was written (its SHA-256 differs): delete it, and "
                "the same command makes it again"
            )
        return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))

    def finish(self, folder: Path, lines: Mapping[int, Line]) -> None:
        return None

    def measures(self, lines: Mapping[int, Line]) -> dict[str, dict[int, float | None]]:
        return {}
