"""Reads a committed checkpoint: any range of any tensor, from whichever files hold it.

No tensor is read from a file whose SHA-256 was not compared with the manifest's. A command compares
all files before its work begins (`whole.require_whole`, `shelf.examine`); a reader that was not
asked to compares a file when it opens it.
"""

from __future__ import annotations

import errno
import hashlib
import math
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adrpo_scale.checkpoint.base import MANIFEST, Manifest, Piece, key_of, parse_manifest
from adrpo_scale.checkpoint.form import LARGEST
from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.file_hashes import HashMemory
from adrpo_scale.core.json_files import read_regular
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.tensor_files import FileFacts, file_sha256

# A folder, a FIFO, a device, a loop of links, or far too large: not what a save has written.
_NO_FILE = (errno.EINVAL, errno.EISDIR, errno.ELOOP, errno.EFBIG, errno.ENXIO, errno.ENOTDIR)


class UnreadableError(CheckpointError):
    """The disk or file server fails: no proof that a checkpoint is broken."""


class Reader:
    """One checkpoint folder. Raises CheckpointError where it is no committed checkpoint.

    Building one reads the manifest alone; `faults` reads everything.
    """

    def __init__(
        self, folder: Path, text: str | None = None, compared: Collection[str] = ()
    ) -> None:
        """text: that of the manifest, where the caller has it already. compared: names of files
        that are known to have their hashes."""
        self.folder = folder
        self._compared = set(compared)
        self.text = manifest_text(folder) if text is None else text
        self.manifest: Manifest = parse_manifest(self.text, folder / MANIFEST)
        self._open: dict[str, safe_open] = {}

    def __reduce__(self) -> tuple[type[Reader], tuple[Path, str, frozenset[str]]]:
        """Pickles the manifest that rank 0 has read; files are opened on the other rank."""
        return Reader, (self.folder, self.text, frozenset(self._compared))

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest, in hex: it has the hash of every file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def iteration(self) -> int:
        return self.manifest.iteration

    def names(self, set_name: str = "policy") -> Collection[str]:
        """Names of the tensors of a set; CheckpointError where there is no such set."""
        if set_name not in self.manifest.sets:
            raise CheckpointError(
                f"{self.folder} has no {set_name}; it has {', '.join(sorted(self.manifest.sets))}"
            )
        return self.manifest.sets[set_name].keys()

    def shape(self, name: str, set_name: str = "policy") -> tuple[int, ...]:
        return self.manifest.sets[set_name][name].shape

    def read(
        self, name: str, start: int = 0, stop: int | None = None, set_name: str = "policy"
    ) -> Tensor:
        """Elements [start, stop) of a flattened tensor, float32 [stop - start] on the CPU."""
        watchdog.beat()  # a large checkpoint on a slow disk is no hang
        stored = self.manifest.sets[set_name][name]
        stop = math.prod(stored.shape) if stop is None else stop
        parts = [
            self._piece(set_name, name, piece, max(start, piece.start), min(stop, piece.stop))
            for piece in stored.pieces
            if piece.start < stop and start < piece.stop
        ]
        return torch.cat(parts) if parts else torch.empty(0)

    def whole(self, name: str, set_name: str = "policy") -> Tensor:
        """A tensor in its own shape."""
        return self.read(name, set_name=set_name).view(self.shape(name, set_name))

    def _piece(self, set_name: str, name: str, piece: Piece, start: int, stop: int) -> Tensor:
        try:
            if piece.file not in self._open:
                self._check(piece.file)
                self._open[piece.file] = safe_open(self.folder / piece.file, "pt")
            stored = self._open[piece.file].get_slice(key_of(set_name, name, piece))
            return stored[start - piece.start : stop - piece.start]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / piece.file} is damaged: {error}") from error

    def close(self) -> None:
        """Closes the files: mapped pages that were read count as this process's memory."""
        self._open.clear()

    def _check(self, name: str) -> None:
        """Raises CheckpointError unless the file has its hash."""
        if name not in self._compared:
            files = [facts for facts in self.manifest.files if facts.name == name]
            for fault in self.faults(files, remembered=True):
                raise CheckpointError(f"{fault}; nothing of it is used")

    def count_as_whole(self) -> None:
        """Notes that every file has its hash, as other ranks have found."""
        self._compared.update(facts.name for facts in self.manifest.files)

    def faults(
        self, files: Collection[FileFacts] | None = None, remembered: bool = False
    ) -> Iterator[str]:
        """The faults of the files (all by default): missing, truncated, other contents. Raises
        OSError where a file cannot be read. remembered: a file that was hashed before, and is
        unchanged since by all that the file system says, is not read again."""
        files = self.manifest.files if files is None else files
        pace = Pace(f"verifying {self.folder.name}", sum(facts.bytes for facts in files))
        known = HashMemory() if remembered else None
        for facts in files:
            fault = _fault_of(self.folder / facts.name, facts, pace, known)
            if fault is None:
                self._compared.add(facts.name)
            else:
                yield fault
        if known is not None:
            known.keep()


def _fault_of(path: Path, facts: FileFacts, pace: Pace, known: HashMemory | None) -> str | None:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return f"{path} is no regular file"
        if found.st_size != facts.bytes:
            return f"{path} has {found.st_size} bytes, {facts.bytes} were written"
        if known is not None:
            is_whole = known.has_hash(path, facts.sha256, pace)
        else:
            is_whole = file_sha256(path, pace) == facts.sha256
        if not is_whole:
            return f"{path} is damaged: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return f"{path} is no regular file: {error.strerror}"
    return None


def manifest_text(folder: Path) -> str:
    """The text of a folder's manifest. Raises CheckpointError where it is missing or no text of a
    regular file, UnreadableError where the disk does not say."""
    try:
        return read_regular(folder / MANIFEST, LARGEST).decode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {MANIFEST}: it is not a committed checkpoint"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error}") from error
    except OSError as error:
        kind = CheckpointError if error.errno in _NO_FILE else UnreadableError
        raise kind(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
