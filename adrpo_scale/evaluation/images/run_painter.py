"""A run's checkpoint paints through its domain, as its evaluations do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from adrpo_scale.checkpoint.named import weights_of
from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, given
from adrpo_scale.core.types import DrawKey, Prompt
from adrpo_scale.evaluation.images.models import RunModel
from adrpo_scale.evaluation.images.noise import NOISE, ids_of
from adrpo_scale.evaluation.sample import (
    Source,
    domain_of,
    find_source,
    load_policy,
    require_whole_source,
    sampling_engine,
    stands_for,
)
from adrpo_scale.run.registry import DOMAINS


class RunPainter:
    """The painter of a run; see `painters.Painter`."""

    def __init__(self, model: RunModel, device: torch.device) -> None:
        self._model = model
        self._source = _source(model, device)
        self._domain = domain_of(self._source)
        self._prompts: dict[str, Prompt] = {}
        self._held = ExitStack()

    @property
    def identity(self) -> Mapping[str, Any]:
        reader = given(self._source.reader)
        domain = self._source.config.domain
        solver = getattr(domain, "evaluation", None)
        shape = getattr(self._domain, "latent_shape", None)
        return {
            "kind": "run",
            "run": reader.folder.resolve().parents[1].name,
            "iteration": reader.iteration,
            "weights": weights_of(reader, self._model.weights),
            "steps": getattr(solver, "steps", None),
            "guidance": getattr(solver, "guidance", None),
            "height": getattr(domain, "height", None),
            "width": getattr(domain, "width", None),
            "latent_shape": None if shape is None else list(shape),
            "dtype": self._source.config.engine.dtype,
        }

    def prepare(self, prompts: Sequence[str]) -> None:
        require_whole_source(self._source)
        texts = dict.fromkeys(prompts)
        self._prompts = {text: Prompt(place, text) for place, text in enumerate(texts)}
        engine = sampling_engine(self._source.config)
        self._domain.prepare([*self._prompts.values()], engine.device, engine.dtype)
        policy = load_policy(self._source, self._domain, engine, self._model.weights)
        self._policy = policy
        self._held.enter_context(engine.sampling(policy))

    def paint(self, prompts: Sequence[str], keys: Sequence[DrawKey]) -> list[np.ndarray]:
        rows = self._domain.sample(
            self._policy,
            [self._prompts[text] for text in prompts],
            torch.tensor(ids_of(keys), dtype=torch.int64),
            NOISE,
            mode="evaluation",
        )
        return self._domain.artifacts(rows)

    def close(self) -> None:
        self._held.close()
        del self._policy, self._domain


def _source(model: RunModel, device: torch.device) -> Source:
    """The checkpoint, and the settings of sampling from it. Raises ConfigError for what is no run
    of pictures."""
    meant = dist.run_on_main(lambda: stands_for(model.run))
    if meant != "run":
        raise ConfigError(
            f"run = {model.run!r}: expected a run or a checkpoint of one, but it is a published "
            "model: name it as pipeline = …"
        )
    settings = {
        "domain.evaluation.steps": model.steps,
        "domain.evaluation.guidance": model.guidance,
        "domain.height": model.size,
        "domain.width": model.size,
        "engine.device": device.type,
    }
    overrides = [f"{key}={value}" for key, value in settings.items() if value is not None]
    source = find_source(model.run, overrides)
    medium = DOMAINS[source.config.domain.name].medium
    if medium != "pictures":
        raise ConfigError(
            f"run = {model.run!r}: expected a run that makes pictures, but it makes {medium}: "
            'judge it in a file with benchmark = "text"'
        )
    return source
