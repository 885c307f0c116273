"""Prompt embeddings on disk: a few large files per encoder, found by the hash of each text.

    CACHE/embeddings/FINGERPRINT/NAME.safetensors
        sequence  [N, L, D]     pooled  [N, D_pooled]     metadata: texts, the hash of each row's

A file is written whole under another name and renamed; any number of processes add files to one
folder. A damaged file counts as absent. Reading maps at most `MAPPED` files at a time, however many
prompts there are, and the ranks of a node share the pages.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adrpo_scale.core.caches import cache_root, unwritable
from adrpo_scale.core.errors import CacheError, DiskSpaceError
from adrpo_scale.core.files import temporary_beside
from adrpo_scale.core.tensor_files import TensorFileWriter, TensorHeader

FILE_BYTES = 256 << 20  # of a full file; a writer holds about twice as much
MAPPED = 64  # files
_TENSORS = ("sequence", "pooled")


def cache_folder() -> Path:
    """$ADRPO_CACHE/embeddings, or ~/.cache/adrpo_scale/embeddings. All nodes must see it."""
    return cache_root() / "embeddings"


def store_folder(fingerprint: str) -> Path:
    """The folder of the embeddings of one encoder, at one length and precision."""
    return cache_folder() / fingerprint


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def index_of(files: Iterable[Path]) -> dict[str, tuple[Path, int]]:
    """(file, row) by the hash of the text; of several, the first file's. Damaged files are left
    out."""
    found: dict[str, tuple[Path, int]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                texts = json.loads((file.metadata() or {})["texts"])
        except (OSError, SafetensorError, KeyError, ValueError):
            continue
        for row, text in enumerate(texts):
            found.setdefault(text, (path, row))
    return found


class StoreWriter:
    """Collects embeddings, and writes a file whenever enough are together. files: those written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.files = folder, list[Path]()
        self._texts: list[str] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, text: str, sequence: Tensor, pooled: Tensor) -> None:
        """sequence: [L, D]; pooled: [D_pooled]; both on the CPU."""
        self._texts.append(text_hash(text))
        self._rows.append((sequence, pooled))
        self._bytes += sequence.nbytes + pooled.nbytes
        if self._bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected. Raises CacheError or DiskSpaceError."""
        if not self._rows:
            return
        name = hashlib.sha256("\n".join(self._texts).encode()).hexdigest()[:32]
        path = self._folder / f"{name}.safetensors"
        tensors = [torch.stack(rows) for rows in zip(*self._rows, strict=True)]
        try:
            _write(path, dict(zip(_TENSORS, tensors, strict=True)), self._texts)
        except OSError as error:
            raise _explained(self._folder, error) from error
        self.files.append(path)
        self._texts, self._rows, self._bytes = [], [], 0


def _write(path: Path, tensors: Mapping[str, Tensor], texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = [TensorHeader(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    part = temporary_beside(path)
    try:
        with TensorFileWriter(part, headers, {"texts": json.dumps(texts)}) as file:
            for tensor in tensors.values():
                file.write(tensor)
            file.finish()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _explained(folder: Path, error: OSError) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskSpaceError(
            f"no room for prompt embeddings in {folder} ({error.strerror}): make room, or point "
            "ADRPO_CACHE at a larger disk; what was written is kept"
        )
    return unwritable(folder, error.strerror or repr(error))


class StoreReader:
    """Rows of the files of an index; at most `MAPPED` files are mapped."""

    def __init__(self, place: Mapping[str, tuple[Path, int]]) -> None:
        """place: (file, row) by text."""
        self._place = place
        self._open: OrderedDict[Path, safe_open] = OrderedDict()
        # Held from the beginning: a run survives that somebody clears the cache meanwhile.
        for path in list(dict.fromkeys(path for path, _ in place.values()))[:MAPPED]:
            self._file(path)

    def row(self, text: str) -> tuple[Tensor, Tensor]:
        """(sequence [L, D], pooled [D_pooled]). KeyError for an unknown text."""
        path, row = self._place[text]
        file = self._file(path)
        sequence, pooled = (file.get_slice(name)[row : row + 1][0] for name in _TENSORS)
        return sequence, pooled

    def _file(self, path: Path) -> safe_open:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        while len(self._open) >= MAPPED:
            self._open.popitem(last=False)
        try:
            self._open[path] = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise CacheError(
                f"{path} was removed or damaged while this run needs its prompt embeddings "
                f"({error}): start again, they are made anew"
            ) from error
        return self._open[path]
