"""Prompt embeddings on disk: a few large files per encoder, found by the hash of each text.

    CACHE/embeddings/FINGERPRINT/NAME.safetensors
        sequence  [N, L, D]     pooled  [N, D_pooled]     metadata: texts, the hash of each row's
                                                          rows, the hash of each row itself

A file is written whole under another name and renamed; any number of processes add files to one
folder. A damaged file counts as absent; `damaged` compares rows with their hashes. Reading maps at
most `MAPPED` files at a time, however many prompts there are, and the ranks of a node share the
pages.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adrpo_scale.core.caches import cache_root, unwritable
from adrpo_scale.core.errors import CacheError, DiskSpaceError, StopRequested
from adrpo_scale.core.files import sync_folder, temporary_beside
from adrpo_scale.core.json_files import parse
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.tensor_files import TensorFileWriter, TensorHeader

FILE_BYTES = 256 << 20  # of a full file; a writer holds about twice as much
MAPPED = 64  # files
_TENSORS = ("sequence", "pooled")
_SUFFIX, ASIDE = ".safetensors", ".aside"


def cache_folder() -> Path:
    """$ADRPO_CACHE/embeddings, or ~/.cache/adrpo_scale/embeddings. All nodes must see it."""
    return cache_root() / "embeddings"


def store_folder(fingerprint: str) -> Path:
    """The folder of the embeddings of one encoder, at one length and precision."""
    return cache_folder() / fingerprint


def text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row_hash(text: str, sequence: Tensor, pooled: Tensor) -> str:
    """Hash of a row, in hex. text: the hash of its text."""
    digest = hashlib.sha256(text.encode())
    for part in (sequence, pooled):
        digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def index_of(files: Iterable[Path]) -> dict[str, tuple[Path, int]]:
    """(file, row) by the hash of the text; of several, the first file's. Damaged files are left
    out."""
    found: dict[str, tuple[Path, int]] = {}
    for path in files:
        for row, text in enumerate(_stated(path, "texts") or ()):
            found.setdefault(text, (path, row))
    return found


def damaged(rows: Sequence[tuple[Path, int]]) -> set[Path]:
    """The files of which one of these rows (file, row) does not have the hash that was written with
    it. Files of versions that wrote no hashes are not damaged."""
    pace = Pace("checking prompt embeddings", len(rows), "prompts")
    by_file: dict[Path, list[int]] = {}
    for path, row in rows:
        by_file.setdefault(path, []).append(row)
    return {path for path, numbers in by_file.items() if not _are_whole(path, numbers, pace)}


def _are_whole(path: Path, rows: Sequence[int], pace: Pace) -> bool:
    texts, hashes = _stated(path, "texts") or [], _stated(path, "rows")
    if hashes is None:
        return True
    try:
        with safe_open(path, "pt") as file:
            for row in rows:
                pace.step()
                parts = (file.get_slice(name)[row : row + 1][0] for name in _TENSORS)
                if row_hash(texts[row], *parts) != hashes[row]:
                    return False
    except (OSError, SafetensorError, IndexError):
        return False  # or removed meanwhile
    return True


def _stated(path: Path, name: str) -> list[str] | None:
    """A list of a file's metadata, an entry a row; None where the file states none, [] where it is
    none of ours."""
    try:
        if not path.is_file():
            return []
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(name)
            found = parse(text) if text is not None else None
            counts = {file.get_slice(tensor).get_shape()[0] for tensor in _TENSORS}
    except (OSError, SafetensorError, IndexError, ValueError):
        return []
    if found is None:
        return None
    is_list = isinstance(found, list) and all(isinstance(entry, str) for entry in found)
    return found if is_list and counts == {len(found)} else []


class StoreWriter:
    """Collects embeddings, and writes a file whenever enough are together. files: those written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.files = folder, list[Path]()
        self._texts: list[str] = []
        self._hashes: list[str] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._bytes = 0

    def add(self, text: str, sequence: Tensor, pooled: Tensor) -> None:
        """sequence: [L, D]; pooled: [D_pooled]; both on the CPU."""
        self.add_hashed(text_hash(text), sequence, pooled)

    def add_hashed(self, text: str, sequence: Tensor, pooled: Tensor) -> None:
        """The same by the hash of a text."""
        self._texts.append(text)
        self._hashes.append(row_hash(self._texts[-1], sequence, pooled))
        self._rows.append((sequence, pooled))
        self._bytes += sequence.nbytes + pooled.nbytes
        if self._bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was collected. Raises CacheError or DiskSpaceError."""
        self.files += self._written(_SUFFIX)

    def set_aside(self) -> list[Path]:
        """As `flush`, into a file that no reader looks at, for `join`; [] where there is none."""
        return self._written(ASIDE)

    def _written(self, suffix: str) -> list[Path]:
        if not self._rows:
            return []
        name = hashlib.sha256("\n".join(self._texts).encode()).hexdigest()[:32]
        path = self._folder / f"{name}{suffix}"
        tensors = [torch.stack(rows) for rows in zip(*self._rows, strict=True)]
        try:
            stated = {"texts": self._texts, "rows": self._hashes}
            _write(path, dict(zip(_TENSORS, tensors, strict=True)), stated)
        except OSError as error:
            raise _explained(self._folder, error) from error
        self._texts, self._hashes, self._rows, self._bytes = [], [], [], 0
        return [path]


def join(folder: Path, parts: Sequence[Path]) -> list[Path]:
    """Writes the rows of files that were set aside into as few files as hold them, and removes
    these; returns the new ones. Where that fails, as without room for both, they stay as they
    are."""
    if len(parts) < 2:
        return adopt(parts)
    writer = StoreWriter(folder)
    pace = Pace("joining prompt embeddings", len(parts), "files")
    try:
        for part in parts:
            with safe_open(part, "pt") as file:
                for row, text in enumerate(_stated(part, "texts") or ()):
                    parts_of = (file.get_slice(n)[row : row + 1][0] for n in _TENSORS)
                    writer.add_hashed(text, *parts_of)
            pace.step()
        writer.flush()
    except (OSError, SafetensorError, CacheError, DiskSpaceError, StopRequested):
        return [*writer.files, *adopt(parts)]
    for part in parts:
        part.unlink(missing_ok=True)
    return writer.files


def adopt(parts: Iterable[Path]) -> list[Path]:
    """Makes files that were set aside ones that readers look at; returns these."""
    found = []
    for part in parts:
        with suppress(OSError):
            found.append(part.rename(part.with_suffix(_SUFFIX)))
    return found


def _write(path: Path, tensors: Mapping[str, Tensor], stated: Mapping[str, Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = [TensorHeader(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    part = temporary_beside(path)
    try:
        metadata = {name: json.dumps(entries) for name, entries in stated.items()}
        with TensorFileWriter(part, headers, metadata) as file:
            for tensor in tensors.values():
                file.write(tensor)
            file.finish()
        part.replace(path)
        sync_folder(path.parent)
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
