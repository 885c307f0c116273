"""This rank's share of every tensor, copied to host memory so that the run can train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from adrpo_scale.core.tensor_files import TensorHeader
from adrpo_scale.core.types import FlatRange

LARGE = 64 << 20  # bytes; what a rank stores above this goes into two files
SMALL = 1 << 16  # elements; a slice below this is stored whole by one replica

LocalTensor = tuple[FlatRange, Tensor]
"""The place of this rank's slice in a whole tensor, and the slice."""

LocalSets = Mapping[str, Mapping[str, LocalTensor]]
"""Set → tensor name → slice."""


@dataclass(frozen=True)
class StagedPiece:
    """Elements [start, stop) of the tensor `name` of a set, and their values."""

    set_name: str
    name: str
    start: int
    stop: int
    values: Tensor

    @property
    def header(self) -> TensorHeader:
        key = f"{self.set_name}/{self.name}/{self.start}-{self.stop}"
        return TensorHeader(key, self.values.dtype, tuple(self.values.shape))


def share(place: FlatRange, number: int) -> tuple[int, int]:
    """[start, stop) of the elements that this rank stores of its slice of tensor `number`.

    Replicas split a slice evenly; a small one goes whole to one of them in turn, or hundreds of
    ranks would each store a handful of elements of every bias.
    """
    size = place.stop - place.start
    if size < SMALL:
        mine = number % place.replicas == place.replica
        return (place.start, place.stop) if mine else (place.start, place.start)
    cut = [place.start + size * k // place.replicas for k in (place.replica, place.replica + 1)]
    return cut[0], cut[1]


def shares(sets: LocalSets) -> list[StagedPiece]:
    """This rank's share of the sets, not copied: for a save that training waits for."""
    pieces = []
    for set_name, tensors in sets.items():
        for number, (name, (place, values)) in enumerate(tensors.items()):
            start, stop = share(place, number)
            if start < stop:
                flat = values.detach().reshape(-1)[start - place.start : stop - place.start]
                pieces.append(StagedPiece(set_name, name, start, stop, flat))
    return pieces


def stored_bytes(sets: LocalSets) -> int:
    """Bytes of this rank's share of the sets."""
    return sum(piece.header.bytes for piece in shares(sets))


def parted(pieces: Sequence[StagedPiece]) -> list[list[StagedPiece]]:
    """The pieces in one part, or from LARGE on in two of about equal size: one core hashes a file
    at 1.4 GB/s, which is slower than disks write."""
    total = sum(piece.header.bytes for piece in pieces)
    parts: list[list[StagedPiece]] = [[], []]
    done = 0
    for piece in pieces:
        parts[total >= LARGE and done >= total / 2].append(piece)
        done += piece.header.bytes
    return [part for part in parts if part]


class Stage:
    """Host copies, in memory that is kept for the next save: fresh pages cost more than copying."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def copy(self, sets: LocalSets) -> list[StagedPiece]:
        """Copies this rank's shares; they are valid until the next call."""
        pieces = []
        for piece in shares(sets):
            memory = self._room(f"{piece.set_name}/{piece.name}", piece.values)
            memory.copy_(piece.values, non_blocking=True)
            pieces.append(replace(piece, values=memory))
        if any(piece.values.is_pinned() for piece in pieces):
            torch.cuda.synchronize()  # the copies above are asynchronous
        return pieces

    def _room(self, key: str, like: Tensor) -> Tensor:
        memory = self._memory.get(key)
        if memory is None or memory.shape != like.shape:
            memory = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._memory[key] = memory
        return memory
