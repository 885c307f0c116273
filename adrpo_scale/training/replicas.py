"""Ranks that hold the same part of the trained weights, compared.

Every replica steps its own copy of the weights by the same sums. They stay equal as long as every
kernel and every all-reduce gives the same bits everywhere: a flipped bit or one odd card makes a
copy drift away without a sign, and the run trains on a mixture.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections import Counter

import torch
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.errors import NodeError, agreed
from adrpo_scale.engines.base import Engine

_PIECE = 1 << 24  # elements at once: an int64 copy of a whole tensor may not fit on a GPU


def compare_replicas(engine: Engine, iteration: int) -> None:
    """Raises NodeError, on every rank, where replicas of a part of the trained weights differ. It
    names the ranks and nodes of the fewer. Collective."""
    if dist.world_size() == 1:
        return
    place = json.dumps([[name, p.start, p.stop] for name, p in sorted(engine.places().items())])
    slices = engine.trained_slices()
    content = [fingerprint(slices[name]) for name in sorted(slices)]
    mine = [hashlib.sha256(place.encode()).hexdigest(), str(content), socket.gethostname()]
    odd = odd_ranks(dist.gather_objects(mine))
    if odd:
        raise agreed(
            NodeError(
                f"iteration {iteration}: trained weights differ from those of the ranks that hold "
                f"the same part: {'; '.join(odd)}. A GPU or its memory computes wrongly: exclude "
                "the node (--exclude), and resume, from a checkpoint before the last comparison "
                "that passed if the weights of rank 0 are among them"
            )
        )


def fingerprint(tensor: Tensor) -> int:
    """An integer that any other bit of a float32 tensor changes, and any other place of one: the
    sum of the bits as integers, each times an odd number of its place, modulo 2^64."""
    bits = tensor.detach().contiguous().view(torch.int32).flatten()
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), _PIECE):
        piece = bits[start : start + _PIECE].long()
        places = torch.arange(start, start + len(piece), device=bits.device)
        total += (piece * (places * 0x9E3779B97F4A7C1 | 1)).sum()
    return int(total)


def odd_ranks(told: list[list[str]]) -> list[str]:
    """The ranks whose weights differ from those of most ranks with the same part, a text each.
    told: [part, content, host] of every rank. All of a part, where no content is the most frequent.
    """
    found = []
    for part in dict.fromkeys(part for part, _, _ in told):
        held = {rank: (one[1], one[2]) for rank, one in enumerate(told) if one[0] == part}
        counts = Counter(content for content, _ in held.values()).most_common()
        if len(counts) == 1:
            continue
        is_tied = counts[0][1] == counts[1][1]
        for rank, (content, host) in held.items():
            if is_tied or content != counts[0][0]:
                found.append(f"rank {rank} on {host} (of {len(held)})")
    return found
