"""A published diffusers pipeline paints as it is: by its own class, scheduler and settings.

The first noise is given as latents, which depend on a sample's key alone. What a scheduler draws
later comes from a generator of each sample; where one draws from torch's global state instead,
samples are painted one at a time, so that no sample depends on its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.types import DrawKey
from adrpo_scale.evaluation.images.adapters import add_adapters, check_adapters, find_adapters
from adrpo_scale.evaluation.images.families import family_of, latent_shape, own_size
from adrpo_scale.evaluation.images.models import PipelineModel
from adrpo_scale.evaluation.images.noise import first_noise, ids_of, later_noise
from adrpo_scale.evaluation.images.opening import (
    DTYPES,
    load_pipeline,
    needs_of,
    open_pipeline,
    revision_in_use,
)
from adrpo_scale.hub.weight_files import DIFFUSERS
from adrpo_scale.hub.weights import SafetensorsFolder

_BINNED = "use_resolution_binning"  # a size would be replaced by the nearest of training


class PipelinePainter:
    """The painter of a pipeline; see `painters.Painter`."""

    def __init__(self, model: PipelineModel, device: torch.device) -> None:
        self._model, self._device = model, device
        self._opened = opened = open_pipeline(model)
        self._adapters = None
        if model.lora is not None:
            self._adapters = find_adapters(needs_of(model)[1], opened.body)
            check_adapters(self._adapters, opened.skeleton)
        self._dtype = _dtype_of(model.dtype or opened.stored_dtype(), model.dtype, device)
        self._call = self._settings()
        height, width = self._call.get("height"), self._call.get("width")
        self._shape = (
            None
            if height is None or width is None
            else latent_shape(opened.skeleton, opened.model, height, width)
        )
        self._identity = dist.run_on_main(self._facts)
        self._pipeline: Any = None
        self._one_by_one = False

    @property
    def identity(self) -> Mapping[str, Any]:
        return dict(self._identity)

    def prepare(self, prompts: Sequence[str]) -> None:
        self._pipeline = load_pipeline(self._opened, self._dtype, self._device)
        if self._adapters is not None:
            add_adapters(self._adapters, self._pipeline)

    def paint(self, prompts: Sequence[str], keys: Sequence[DrawKey]) -> list[np.ndarray]:
        if prompts and not self._one_by_one:
            painted = self._painted(prompts, keys)
            if len(prompts) == 1 or not self._one_by_one:
                return painted
        pairs = zip(prompts, keys, strict=True)
        return [self._painted([text], [key])[0] for text, key in pairs]

    def close(self) -> None:
        self._pipeline = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _painted(self, prompts: Sequence[str], keys: Sequence[DrawKey]) -> list[np.ndarray]:
        """One call of the pipeline; notes whether it drew from torch's global state."""
        given: dict[str, Any] = {"prompt": list(prompts), "output_type": "pil"}
        family = family_of(self._pipeline)
        if self._shape is not None and family is not None:
            noise = first_noise(keys, self._shape)
            if self._opened.body == "unet":  # its pipelines do not convert what they are given
                noise = noise.to(DTYPES[self._dtype])
            given["latents"] = family.pack(self._pipeline, noise).to(self._device)
        if "generator" in self._opened.parameters:
            given["generator"] = later_noise(keys)
        with torch.random.fork_rng(devices=_cuda(self._device)):
            torch.manual_seed(ids_of(keys)[0])
            before = _state(self._device)
            images = self._pipeline(**given, **self._call).images
            self._one_by_one |= not torch.equal(before, _state(self._device))
        return [np.asarray(image.convert("RGB")) for image in images]

    def _settings(self) -> dict[str, Any]:
        """The arguments of each call that do not depend on the sample: the model's settings, else
        the pipeline's own."""
        model, opened = self._model, self._opened
        is_binned = _BINNED in opened.parameters
        size = own_size(opened.skeleton, opened.model, opened.default("height"), is_binned)
        height, width = (model.size, model.size) if model.size else size or (None, None)
        wanted = {
            "num_inference_steps": model.steps or opened.default("num_inference_steps"),
            "guidance_scale": (
                opened.default("guidance_scale") if model.guidance is None else model.guidance
            ),
            "height": height,
            "width": width,
            "max_sequence_length": model.max_sequence_length
            or opened.default("max_sequence_length"),
            _BINNED: False if is_binned else None,
        }
        named = {"guidance_scale": model.guidance, "height": model.size}
        named |= {"max_sequence_length": model.max_sequence_length}
        for name, value in named.items():
            if value is not None and name not in opened.parameters:
                raise ConfigError(
                    f"pipeline = {model.pipeline!r}: {type(opened.skeleton).__name__} takes no "
                    f"{name}, and {value} is set: leave it out"
                )
        return {name: value for name, value in wanted.items() if value is not None}

    def _facts(self) -> dict[str, Any]:
        """See `identity`."""
        opened, revision = self._opened, revision_in_use(self._opened)
        scheduler = opened.skeleton.components.get("scheduler")
        weights = SafetensorsFolder(opened.folder / opened.body, DIFFUSERS)
        return {
            "kind": "pipeline",
            "pipeline": self._model.pipeline,
            "class": type(opened.skeleton).__name__,
            "revision": revision,
            # A folder of one's own may change under its name.
            "sha256": weights.sha256() if revision is None else None,
            "scheduler": type(scheduler).__name__,
            "steps": self._call["num_inference_steps"],
            "guidance": self._call.get("guidance_scale"),
            "height": self._call.get("height"),
            "width": self._call.get("width"),
            "max_sequence_length": self._call.get("max_sequence_length"),
            "without": [*self._model.without],
            "dtype": self._dtype,
            "latent_shape": None if self._shape is None else list(self._shape),
            "lora": None if self._adapters is None else self._adapters.identity,
        }


def _dtype_of(name: str, stated: str | None, device: torch.device) -> str:
    """A key of DTYPES. Half precision on a CPU is named on purpose, or it is float32. Raises
    ConfigError for another name."""
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name!r}: expected one of {', '.join(DTYPES)}")
    return "float32" if stated is None and device.type == "cpu" else name


def _cuda(device: torch.device) -> list[int]:
    """The CUDA devices whose random state a call may change."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _state(device: torch.device) -> torch.Tensor:
    """torch's global random state, of the CPU and of that device."""
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in _cuda(device))]
    return torch.cat(states)
