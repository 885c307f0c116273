"""Writes safetensors files tensor by tensor, hashed on their way to the disk.

The library's own `save_file` needs every tensor in memory at once and hashes nothing. The format is
its documented one: 8 bytes of header length (little endian), the header as JSON padded with spaces
to 8 bytes, then the tensors' bytes without gaps in the order of the header.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from adrpo_scale.core.files import open_new, write_all
from adrpo_scale.core.pace import Pace

CHUNK = 8 << 20  # bytes written and hashed at once
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def can_write(dtype: torch.dtype) -> bool:
    """Whether `TensorFileWriter` writes this type."""
    return dtype in _NAMES


@dataclass(frozen=True)
class FileFacts:
    """A written file: its name, size in bytes, SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TensorHeader:
    """Name, type and shape of a tensor that is to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class TensorFileWriter:
    """One safetensors file. Use as a context manager: `write` each tensor in the order of
    `headers`, then `finish`. Raises the disk's OSError, and FileExistsError where the path is in
    use; an unfinished file is not valid."""

    def __init__(
        self, path: Path, headers: Sequence[TensorHeader], metadata: Mapping[str, str] | None = None
    ) -> None:
        self._path, self._left = path, list(headers)
        self._digest, self._bytes = hashlib.sha256(), 0
        self._flusher = ThreadPoolExecutor(1, "flush")
        self._flushing: Future[None] | None = None
        self._small = bytearray(header_bytes(headers, metadata))
        self._descriptor = open_new(path)

    def __enter__(self) -> TensorFileWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._flusher.shutdown()
        os.close(self._descriptor)

    def write(self, tensor: Tensor) -> None:
        """The next tensor; its type and shape must be those announced."""
        expected = self._left.pop(0)
        if (tensor.dtype, tuple(tensor.shape)) != (expected.dtype, expected.shape):
            raise RuntimeError(f"{expected} was announced, not {tensor.dtype} {[*tensor.shape]}")
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        if len(self._small) + len(data) <= CHUNK:
            self._small += data.data  # adapters are thousands of small tensors
            return
        self._flush()
        for start in range(0, len(data), CHUNK):
            self._put(data[start : start + CHUNK].data)

    def _flush(self) -> None:
        if self._small:
            self._put(memoryview(self._small))
            self._small = bytearray()

    def _put(self, data: memoryview) -> None:
        self._digest.update(data)
        write_all(self._descriptor, data)
        self._bytes += len(data)
        if len(data) == CHUNK and (self._flushing is None or self._flushing.done()):
            # Otherwise the disk would be idle while chunks are hashed and write all at the end.
            self._check_flushed()
            self._flushing = self._flusher.submit(os.fdatasync, self._descriptor)

    def _check_flushed(self) -> None:
        """Raises the error of an earlier flush: the kernel reports a lost page only once."""
        if self._flushing is not None:
            self._flushing.result()

    def finish(self) -> FileFacts:
        """Waits until the file is on the disk."""
        if self._left:
            raise RuntimeError(f"{len(self._left)} tensors were announced and not written")
        self._flush()
        self._check_flushed()
        os.fsync(self._descriptor)
        return FileFacts(self._path.name, self._bytes, self._digest.hexdigest())


def header_bytes(
    headers: Sequence[TensorHeader], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The beginning of a safetensors file, up to the first tensor."""
    table: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for tensor in headers:
        start, end = end, end + tensor.bytes
        table[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def file_sha256(path: Path, pace: Pace | None = None) -> str:
    """SHA-256 of a file, in hex. pace: of a loop over several files; by default its own."""
    digest, size = hashlib.sha256(), path.stat().st_size
    pace = pace or Pace(f"hashing {path.name}", size)
    buffer = memoryview(bytearray(min(size, CHUNK) + 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            pace.step(count)
    return digest.hexdigest()
