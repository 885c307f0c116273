"""Randomness as a function, not a state.

Every random draw comes from a CPU generator whose seed is a hash of (run seed, iteration, update,
draw, sample id, purpose). So no random state is saved, a resumed run draws what the uninterrupted
one would have drawn, and noise, prompts and ids are the same at any number of processes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from adrpo_scale.core.types import DrawKey


class Purpose(IntEnum):
    """The purpose of a draw. Values are part of every run's identity: add, never renumber."""

    PROMPT_ORDER = 1
    ROLLOUT_NOISE = 2
    TRAIN_NOISE = 3
    TRAIN_TIME = 4
    TOKEN = 5
    PARAMETER_INIT = 6
    EVALUATION = 7
    SPLIT = 8


def derive_seed(*integers: int, text: str = "") -> int:
    """A 63-bit seed from integers (each within int64) and an optional text; stable over versions.

    Python's own hash() differs between processes, and a sum of seeds would give (seed 1, sample 2)
    and (seed 2, sample 1) the same draws.
    """
    packed = struct.pack(f"<{len(integers)}q", *integers) + text.encode()
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def generator(key: DrawKey, sample_id: int, purpose: Purpose) -> torch.Generator:
    """The CPU generator of one draw of one sample."""
    seed = derive_seed(key.seed, key.iteration, key.update, key.draw, sample_id, int(purpose))
    return torch.Generator().manual_seed(seed)


def normal(
    key: DrawKey, sample_ids: Iterable[int], purpose: Purpose, shape: Sequence[int]
) -> Tensor:
    """Standard normal noise, float32 [N, *shape] on the CPU, one generator a sample."""
    rows = [torch.randn(*shape, generator=generator(key, int(s), purpose)) for s in sample_ids]
    return torch.stack(rows) if rows else torch.empty(0, *shape)


def uniform(key: DrawKey, sample_ids: Iterable[int], purpose: Purpose) -> Tensor:
    """One uniform number in [0, 1) per sample, float32 [N] on the CPU."""
    rows = [torch.rand((), generator=generator(key, int(s), purpose)) for s in sample_ids]
    return torch.stack(rows) if rows else torch.empty(0)


def permutation(n: int, *integers: int) -> Tensor:
    """A permutation of range(n), int64 [n], that depends on n and `integers` alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*integers)))
