"""Reads a committed checkpoint: any range of any tensor, from whichever files hold it."""

from __future__ import annotations

import errno
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

    def __init__(self, folder: Path, text: str | None = None) -> None:
        """text: that of the manifest, where the caller has it already."""
        self.folder = folder
        self.text = manifest_text(folder) if text is None else text
        self.manifest: Manifest = parse_manifest(self.text, folder / MANIFEST)
        self._open: dict[str, safe_open] = {}

    def __reduce__(self) -> tuple[type[Reader], tuple[Path, str]]:
        """Pickles the manifest that rank 0 has read; files are opened on the other rank."""
        return Reader, (self.folder, self.text)

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
                self._open[piece.file] = safe_open(self.folder / piece.file, "pt")
            stored = self._open[piece.file].get_slice(key_of(set_name, name, piece))
            return stored[start - piece.start : stop - piece.start]
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.folder / piece.file} is damaged: {error}") from error

    def close(self) -> None:
        """Closes the files: mapped pages that were read count as this process's memory."""
        self._open.clear()

    def faults(self, files: Collection[FileFacts] | None = None) -> Iterator[str]:
        """The faults of the files (all by default): missing, truncated, other contents. Raises
        OSError where a file cannot be read."""
        files = self.manifest.files if files is None else files
        pace = Pace(f"verifying {self.folder.name}", sum(facts.bytes for facts in files))
        for facts in files:
            path = self.folder / facts.name
            try:
                found = path.stat()
                size = found.st_size
                if not stat.S_ISREG(found.st_mode):
                    yield f"{path} is no regular file"
                elif size != facts.bytes:
                    yield f"{path} has {size} bytes, {facts.bytes} were written"
                elif file_sha256(path, pace) != facts.sha256:
                    yield f"{path} is damaged: its SHA-256 is not the manifest's"
            except FileNotFoundError:
                yield f"{path} is missing"


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
