"""Exponential moving average of the trained weights: one more set of local slices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adrpo_scale.engines.base import Engine


class Ema:
    """average ← decay · average + (1 - decay) · weights, at each `update`."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self.slices = {name: part.clone() for name, part in engine.trained_slices().items()}

    def update(self) -> None:
        parts = self._engine.trained_slices()
        torch._foreach_lerp_(list(self.slices.values()), list(parts.values()), 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context with the averaged weights in the policy; afterwards it has the trained ones to
        the bit."""
        parts = self._engine.trained_slices()
        trained = {name: part.clone() for name, part in parts.items()}
        for name, part in parts.items():
            part.copy_(self.slices[name])
        self._engine.publish()
        try:
            yield
        finally:
            for name, part in parts.items():
                part.copy_(trained[name])
            self._engine.publish()
