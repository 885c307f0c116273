"""Which ranks hold the text encoders while prompts are embedded: as many as host memory takes.

Every rank that embeds reads the encoders into host memory, on a GPU too, before they move there: 8
ranks with T5 in bfloat16 take 85 GB of a node at the same moment. The embeddings are the same to
the bit whichever ranks make them.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Sequence
from pathlib import Path

import torch

from adrpo_scale.core import dist
from adrpo_scale.core.console import ON_SCREEN
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.host_memory import free_host_memory
from adrpo_scale.domains.pipelines import encoders
from adrpo_scale.hub.foreign import open_tensors
from adrpo_scale.hub.weight_files import TRANSFORMERS, weight_files

log = logging.getLogger(__name__)

SHARE = 0.5  # of a node's free host memory that encoders may take
Facts = tuple[str, int | None]  # of a rank: its node, and the free bytes there


def encoder_bytes(model: Path, t5: bool, dtype: torch.dtype) -> int:
    """Bytes of the text encoders of a pipeline in a precision, by the headers of their files."""
    return sum(_numbers(model / part) for part in encoders(t5)) * dtype.itemsize


def _numbers(folder: Path) -> int:
    found, files = 0, weight_files(folder, TRANSFORMERS)
    for name, file in files.file_of.items():
        with open_tensors(folder / file) as opened:
            found += math.prod(opened.get_slice(name).get_shape())
    return found


def embedding_ranks(each: int) -> list[int]:
    """The ranks that embed, in order. each: bytes of the encoders. Collective."""
    facts = dist.gather_objects((socket.gethostname(), free_host_memory()))
    chosen = chosen_ranks(facts, each)
    if len(chosen) < len(facts):
        least = min(free for _, free in facts if free is not None)
        log.info(
            "%d of %d ranks embed the prompts: the text encoders take %s of host memory a rank, "
            "and a node has %s free",
            len(chosen),
            len(facts),
            size_text(each),
            size_text(least),
            extra=ON_SCREEN,
        )
    return chosen


def chosen_ranks(facts: Sequence[Facts], each: int) -> list[int]:
    """The first ranks of every node, as many as its memory takes, and at least one of each."""
    nodes: dict[str, list[int]] = {}
    for rank, (node, _) in enumerate(facts):
        nodes.setdefault(node, []).append(rank)
    chosen = []
    for ranks in nodes.values():
        free = [f for f in (facts[rank][1] for rank in ranks) if f is not None]
        many = max(1, int(SHARE * min(free) // max(1, each))) if free else len(ranks)
        chosen += ranks[:many]
    return sorted(chosen)


def memory_line(each: int) -> str:
    """What `plan` says about it."""
    return (
        f"text encoders: {size_text(each)} of host memory a rank while prompts are embedded; on a "
        f"node, as many ranks embed as take {SHARE:.0%} of what is free there, at least one"
    )
