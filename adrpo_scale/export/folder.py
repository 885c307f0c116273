"""The trained weights of a complete folder, streamed tensor by tensor.

Weight files are split and named as by diffusers, transformers and huggingface_hub. No model is ever
in memory as a whole, and mapped files are closed while they are read: their pages count as this
process's memory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from adrpo_scale.checkpoint.merged import MergedWeights
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.tensor_files import FileFacts, TensorFileWriter, TensorHeader
from adrpo_scale.export.base import Material, Request, Written, check_changed
from adrpo_scale.export.copies import json_text

HELD = 64 << 20  # bytes read before mapped files are closed


def weight_headers(material: Material, dtype: torch.dtype | None) -> list[TensorHeader]:
    """Headers of all tensors of the exported component, by stored name; no tensor is read."""
    stored = material.stored
    names = sorted(stored.names())
    headers = [TensorHeader(n, material.dtype(n, dtype), stored.shape(n)) for n in names]
    material.close()
    return headers


def write_weights(material: Material, request: Request, folder: Path) -> Written:
    """Writes the trained component's weight files and their index into `folder`/component.

    Raises ExportError where no trained tensor differs from the base's in the written type, or where
    a value does not fit that type; OSError where the disk fails.
    """
    target, headers = material.target, weight_headers(material, request.dtype)
    split = split_state_dict_into_shards_factory(
        {header.name: header for header in headers},
        get_storage_size=lambda header: header.bytes,
        filename_pattern=f"{target.stem}{{suffix}}.safetensors",
        max_shard_size=request.max_shard_bytes,
    )
    by_name = {header.name: header for header in headers}
    part = folder / target.component
    part.mkdir(parents=True, exist_ok=True)
    stream, files = _Stream(material), {}
    pace = Pace("writing weights", sum(header.bytes for header in headers))
    for file_name, names in split.filename_to_tensors.items():
        facts = _write_shard(part / file_name, [by_name[name] for name in names], stream, pace)
        files[(Path(target.component) / file_name).as_posix()] = facts
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (part / f"{target.stem}.safetensors.index.json").write_text(json_text(index))
    written = Written(files, stream.trained, stream.changed)
    check_changed(written, request.dtype)
    return written


def _write_shard(path: Path, headers: list[TensorHeader], stream: _Stream, pace: Pace) -> FileFacts:
    with TensorFileWriter(path, headers, {"format": "pt"}) as file:
        for header in headers:
            file.write(stream.read(header))
            pace.step(header.bytes)
        return file.finish()


class _Stream:
    """Reads tensors in their exported form, and counts the trained ones that differ from the
    base's."""

    def __init__(self, material: Material) -> None:
        self._reference, self._stored = material.spec.weights, material.stored
        self._weights = MergedWeights(self._reference, material.reader, material.part)
        self._held = 0
        self.trained = self.changed = 0

    def read(self, header: TensorHeader) -> Tensor:
        """One tensor, in the header's type. Raises ExportError where a value does not fit it."""
        if self._held > HELD:
            self._weights.close()
            self._stored.close()
            self._held = 0
        self._held += header.bytes
        name = self._stored.policy_names.get(header.name)
        if name is None:
            return self._stored.read(header.name)
        tensor = self._weights.read(name)
        result = tensor.to(header.dtype)
        if self._weights.is_trained(name):
            before = self._reference.read(name).to(header.dtype)
            self.trained += 1
            self.changed += not torch.equal(result, before)
        if header.dtype == torch.float16 and not bool(torch.isfinite(result).all()):
            largest = float(tensor.abs().max())
            raise ExportError(
                f"{header.name} has values up to {largest:.3g}, float16 ends at 65504; use "
                "--dtype bfloat16 or float32"
            )
        return result
