"""The weights of a trained model as a `WeightSource`: the tensors of the base model, with those of
a checkpoint in their place, or added to them where they are adapters.

Tensors are merged one by one, so that no model is in memory whole. Exports write the result, and a
rebased reference is built from it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.hub.weights import WeightSource


class MergedWeights:
    """A `WeightSource`. set_name: the set to take, `policy` or `ema`.

    An adapted weight is W + alpha/rank · B @ A, in float32 (LoRA, arXiv 2106.09685); after full
    training the trained parameter replaces the base's. Raises CheckpointError where the base lacks
    a trained tensor.
    """

    def __init__(self, base: WeightSource, reader: Reader, set_name: str = "policy") -> None:
        self.folder: Path = base.folder
        self._base, self._reader, self._set = base, reader, set_name
        self.lora: Mapping[str, Any] | None = reader.manifest.document["lora"]
        self._trained = set(reader.names(set_name))
        homeless = {self.base_name(name) for name in self._trained} - base.names()
        if homeless:
            raise CheckpointError(
                f"{reader.folder} trains {sorted(homeless)[:3]}, which {base.folder} does not "
                "have; the checkpoint belongs to another base model"
            )

    def base_name(self, trained: str) -> str:
        """The base's tensor that a trained tensor changes."""
        if self.lora is None:
            return trained
        module, _, _ = trained.partition(".lora_")
        return f"{module}.weight"

    def is_trained(self, name: str) -> bool:
        """Whether the checkpoint changes this tensor of the base."""
        return (name if self.lora is None else adapter_names(name)[0]) in self._trained

    def names(self) -> set[str]:
        return self._base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def sha256(self) -> str:
        """Hash of the base and of the checkpoint's manifest, which has the hash of every file."""
        parts = f"{self._base.sha256()} {self._reader.sha256} {self._set}"
        return hashlib.sha256(parts.encode()).hexdigest()

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        if not self.is_trained(name):
            return self._base.read(name, start, stop)
        if self.lora is None:
            return self._rows(name, start, stop)
        down, up = (self._reader.whole(part, self._set) for part in adapter_names(name))
        scaling = self.lora["alpha"] / self.lora["rank"]
        return self._base.read(name, start, stop).float() + scaling * (up[start:stop] @ down)

    def _rows(self, name: str, start: int, stop: int | None) -> Tensor:
        shape = self._reader.shape(name, self._set)
        if not shape:
            return self._reader.whole(name, self._set)
        row = math.prod(shape[1:])
        stop = shape[0] if stop is None else stop
        flat = self._reader.read(name, start * row, stop * row, self._set)
        return flat.view(stop - start, *shape[1:])

    def close(self) -> None:
        self._base.close()
        self._reader.close()


def adapter_names(weight: str) -> tuple[str, str]:
    """Names of A [r, in] and B [out, r] of an adapted weight [out, in]."""
    module = weight.removesuffix(".weight")
    return f"{module}.lora_A.default.weight", f"{module}.lora_B.default.weight"
