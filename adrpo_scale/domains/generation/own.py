"""Rollouts by a second copy of the policy: the tokens that the policy itself would draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.errors import WeightsError
from adrpo_scale.domains.backends import DECODERS
from adrpo_scale.domains.decoding import SamplingConfig
from adrpo_scale.domains.generation.generator import Generator
from adrpo_scale.domains.language_model import WEIGHTS, language_model_spec, read_config
from adrpo_scale.engines.base import OptimizerConfig
from adrpo_scale.engines.fsdp2 import Fsdp2Config, Fsdp2Engine
from adrpo_scale.hub.weights import SafetensorsFolder


class Own(Generator):
    """A model of transformers, built and computed as an engine on one process does it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        folder, attention = Path(settings["folder"]), settings["attention"]
        config = read_config(folder, settings["model"])
        weights = SafetensorsFolder(folder, WEIGHTS, settings["tied"])
        spec = language_model_spec(config, attention, weights, None, tuple(settings["banned"]))
        engine = Fsdp2Engine(Fsdp2Config(**settings["engine"]), OptimizerConfig(), 0)
        self._device, self._model = engine.device, engine.build_frozen(spec)
        self._ends, self._pad = settings["ends"], settings["pad"]
        self._decode = DECODERS[settings["decoding"]]

    @torch.no_grad()
    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        left = dict(self._model.named_parameters())
        for name, tensor in weights:
            parameter = left.pop(name, None)
            if parameter is None or parameter.shape != tensor.shape:
                there = "no parameter" if parameter is None else f"shape {[*parameter.shape]}"
                raise WeightsError(
                    f"the policy's {name} of shape {[*tensor.shape]} has {there} in the process of "
                    "rollouts; please open an issue"
                )
            parameter.copy_(tensor)
        if left:
            raise WeightsError(
                f"the policy has sent no {', '.join(sorted(left)[:3])} to the process of rollouts; "
                "please open an issue"
            )

    def generate(
        self, request: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        sampling = SamplingConfig(**request["sampling"])
        uniforms = tensors["uniforms"].to(self._device)
        prompts, ends, pad = request["prompts"], self._ends, self._pad
        made = self._decode(self._model, prompts, uniforms, sampling, ends, pad)
        return {
            "tokens": made.tokens_NT.cpu(),
            "lengths": made.lengths_N.cpu(),
            "finished": made.finished_N.cpu(),
        }
