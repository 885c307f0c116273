"""Given pairs in the place of rollouts: the rows of an iteration and their rewards, 1 and 0.

Which pairs an iteration has follows from seed and cursor, as for prompts. Sample 2p is the chosen
answer of the iteration's p-th prompt, sample 2p + 1 the rejected one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core import dist
from adrpo_scale.core.types import Prompt, Rows
from adrpo_scale.domains.base import Domain

PAIR = 2


@dataclass(frozen=True)
class Preference:
    """The only reward of given pairs, as `gather_rewards` takes it."""

    label: str = "preference"
    weight: float = 1.0


def preference(rows: Rows) -> Tensor:
    """float64 [N, 1]: 1 for chosen answers, 0 for rejected ones."""
    return (1 - rows.sample_ids_N % PAIR).double()[:, None]


def given_parts(
    domain: Domain, prompts_P: Sequence[Prompt], chunk: int, chunks: int, check: Callable[[], None]
) -> Iterator[Rows]:
    """This rank's block of the 2P given samples, `chunk` at a time. chunks: their number, the same
    on every rank. check: called before each; may raise StopRequested."""
    mine = [*dist.block(PAIR * len(prompts_P), dist.rank(), dist.world_size())]
    for k in range(chunks):
        check()
        ids = mine[k * chunk : (k + 1) * chunk]
        ids_N = torch.tensor(ids, dtype=torch.int64)
        yield domain.given([prompts_P[s // PAIR] for s in ids], ids_N)


class Artifacts(Sequence[Any]):
    """`Domain.artifacts` of rows, made when the first is asked for: no reward looks at given pairs,
    and decoding pictures takes time."""

    def __init__(self, domain: Domain, rows: Rows) -> None:
        self._domain, self._rows = domain, rows

    @cached_property
    def _made(self) -> list[Any]:
        return self._domain.artifacts(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        return self._made[place]
