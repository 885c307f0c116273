"""Weights on their way to another process of this machine: safetensors in shared memory.

Each file holds tensors of some 256 MiB, or one larger tensor, whatever the size of the model. It
has no name: the kernel frees it with the last process that holds it, also after a kill, and no
limit of /dev/shm concerns it. Where the system has no such memory it is an unnamed temporary file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator

import torch
from safetensors import safe_open
from torch import Tensor

from adrpo_scale.core.files import write_all
from adrpo_scale.core.tensor_files import TensorHeader, header_bytes

FILE_BYTES = 256 << 20  # of a file with more than one tensor


def weight_files(
    weights: Iterable[tuple[str, Tensor]], file_bytes: int = FILE_BYTES
) -> Iterator[int]:
    """Descriptors of files with all of the tensors, in their order. Each is closed when the next
    one is asked for. Raises OSError where memory or disk run out."""
    group: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        if group and size + tensor.nbytes > file_bytes:
            yield from _one_file(group)
            group, size = [], 0
        group.append((name, tensor))
        size += tensor.nbytes
    if group:
        yield from _one_file(group)


def _one_file(group: list[tuple[str, Tensor]]) -> Iterator[int]:
    descriptor = _unnamed()
    try:
        headers = [TensorHeader(name, t.dtype, tuple(t.shape)) for name, t in group]
        write_all(descriptor, header_bytes(headers))
        while group:
            _, tensor = group.pop(0)
            # A copy on the CPU as well: FSDP cannot free a tensor that numpy has seen.
            data = tensor.detach().to("cpu", copy=True).contiguous().flatten().view(torch.uint8)
            write_all(descriptor, data.numpy().data)
        yield descriptor
    finally:
        os.close(descriptor)


def _unnamed() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("adrpo-weights", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def tensors_in(descriptor: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors of such a file, on the CPU; each holds the file's memory for as long as it is
    there."""
    with safe_open(f"/dev/fd/{descriptor}", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            yield name, file.get_tensor(name)
