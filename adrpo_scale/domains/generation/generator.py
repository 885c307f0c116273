"""The contract of a program that draws rollouts, inside its process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a program decides itself which libraries it loads
    from torch import Tensor


class Generator(ABC):
    """One model. Built from settings, JSON that its back-end sends."""

    @abstractmethod
    def load(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        """Takes all of the policy's weights, by the names of the model's files. Called before the
        first `generate`, and after each `rest`."""

    @abstractmethod
    def generate(
        self, request: Mapping[str, Any], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The completions, as `backends.generated` reads them.

        request: `prompts` (token ids of each of N rows), `seeds` (N integers) and `sampling` (the
        fields of `SamplingConfig`). tensors: `uniforms`, float32 [N, T].
        """

    def rest(self) -> None:
        """Gives back what is not needed until the next `load`."""
        return None
