"""What the ranks of an evaluation tell each other after their batches, and free after a model."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

import torch

from adrpo_scale.core import dist
from adrpo_scale.core.errors import StopRequested
from adrpo_scale.core.signals import heard
from adrpo_scale.evaluation import parts


def merge_all(path: Path, lines: Sequence[parts.Line]) -> int:
    """Merges the lines of all ranks into the file; returns their number. Where a rank has heard a
    signal, and so may have left out batches, every rank raises StopRequested afterwards.
    Collective."""
    told = dist.gather_objects((list(lines), heard()))
    whole = [line for own, _ in told for line in own]
    dist.run_on_main(lambda: parts.merged(path, whole) and None)
    if any(has_heard for _, has_heard in told):
        raise StopRequested(saveable=True)
    return len(whole)


def free_memory() -> None:
    """Frees what a closed model held: the next one needs the room."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
