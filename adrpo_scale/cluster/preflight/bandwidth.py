"""Correctness and bandwidth of all-reduce: within nodes, between nodes, over all processes.

Small groups come first, so that a fault can be attributed: each node by itself; then pairs of
neighbours on a ring of the nodes, in rounds of pairs that share no node, so that each node is in
two pairs (a node is bad where both fail); then all processes together.

Groups are made directly on the rendezvous's store, without torch's global process group: after a
group has failed, the next one must still work. Each measurement runs in a thread of its own, which
is abandoned if it does not return, because a broken network can block NCCL forever.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor
from torch.distributed import distributed_c10d

from adrpo_scale.cluster.preflight.base import Place
from adrpo_scale.cluster.preflight.node import Node

BYTES = {"gloo": 4 << 20, "nccl": 64 << 20}  # of the message that is timed
REPEATS = 3
SECONDS = 60.0  # limit for a group to form and sum; a node's first NCCL call takes seconds
_PATTERN = 3

_kept: list[Any] = []  # keeps groups open: closing one while others are in use can abort


@dataclass(frozen=True)
class Sums:
    """The measurement of one group. members: ranks. bandwidth: bytes/s over a link of a ring,
    2(n-1)/n · size/time (nccl-tests' "bus bandwidth"), of the slowest member; None where the group
    failed. wrong: description of a wrong sum. failed: rank → reason."""

    backend: str
    members: tuple[int, ...]
    bandwidth: float | None = None
    wrong: str | None = None
    failed: Mapping[int, str] | None = None

    @property
    def is_sound(self) -> bool:
        return self.wrong is None and not self.failed


# ---- which groups --------------------------------------------------------------------------------


def within_nodes(nodes: Sequence[Node]) -> list[list[int]]:
    """The processes of each node that has several."""
    return [list(node.ranks) for node in nodes if len(node.ranks) > 1]


def ring_rounds(number: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours on a ring of `number` nodes, in rounds that use each node at most once:
    4 → [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]; an odd number takes a third round."""
    if number < 2:
        return []
    if number == 2:
        return [[(0, 1)]]
    pairs = [(k, (k + 1) % number) for k in range(number)]
    last = [pairs.pop()] if number % 2 else []
    rounds = [pairs[0::2], pairs[1::2], last]
    return [found for found in rounds if found]


def between_nodes(nodes: Sequence[Node]) -> list[list[list[int]]]:
    """Rounds of pairs of ranks, one rank of each node."""
    firsts = [node.ranks[0] for node in nodes]
    rounds = ring_rounds(len(nodes))
    return [[[firsts[a], firsts[b]] for a, b in pairs] for pairs in rounds]


# ---- one process's part --------------------------------------------------------------------------


def measure(order: Mapping[str, Any], store: Any, place: Place) -> dict[str, Any] | None:
    """This process's part of a round; None where it is in no group. order: a unique `key`;
    `groups`, lists of ranks; `backend`; `seconds`, the time limit."""
    mine = [group for group in order["groups"] if place.rank in group]
    if not mine:
        return None
    box: dict[str, Any] = {}

    def work() -> None:
        try:
            box.update(_measure(order, mine[0], store, place))
        except Exception as error:
            box["failed"] = _short(error)

    thread = threading.Thread(target=work, name="all-reduce", daemon=True)
    thread.start()
    thread.join(order["seconds"] + 5)
    return dict(box) or {"failed": f"no answer within {order['seconds'] + 5:g} s"}


def _short(error: Exception) -> str:
    """The first line of an error, without its place in torch's sources."""
    line = (str(error).splitlines() or [""])[0]
    return line.rpartition("] ")[2] or repr(error)


def _measure(
    order: Mapping[str, Any], members: list[int], store: Any, place: Place
) -> dict[str, Any]:
    backend = order["backend"]
    own = td.PrefixStore(f"{order['key']}/{members[0]}", store)
    rank, size = members.index(place.rank), len(members)
    device = torch.device("cuda", place.local_rank) if backend == "nccl" else torch.device("cpu")
    group = new_group(backend, own, rank, size, timedelta(seconds=order["seconds"]), device)
    _kept.append(group)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the current device is a thread's own
    dtypes = [torch.float32, torch.bfloat16] if backend == "nccl" else [torch.float32]
    for dtype in dtypes:
        numbers = contribution(rank, 1 << 16, dtype).to(device)
        group.allreduce([numbers]).wait()
        wrong = wrong_sum(numbers, size)
        if wrong:
            return {"wrong": f"{dtype}: {wrong}"}
    return {"seconds": _fastest(group, device, BYTES[backend])}


def new_group(
    backend: str, store: Any, rank: int, size: int, timeout: timedelta, device: torch.device
) -> Any:
    """A separate process group, of the implementation that the run will use. Raises RuntimeError
    where its members do not find each other."""
    if backend == "gloo":
        return td.ProcessGroupGloo(store, rank, size, timeout)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # an exception at the time limit, not an abort
    options = td.ProcessGroupNCCL.Options()
    options._timeout = timeout
    modern = nccl2()
    if modern is not None:
        return modern(store, rank, size, options, device)
    return td.ProcessGroupNCCL(store, rank, size, options)


def nccl2() -> Any:
    """torch's second implementation over NCCL, where "nccl" means it (since torch 2.15, unless
    TORCH_DIST_USE_NCCL2=0); None elsewhere."""
    if os.environ.get("TORCH_DIST_USE_NCCL2") == "0":
        return None
    return getattr(distributed_c10d, "ProcessGroupNCCL2", None)


def _fastest(group: Any, device: torch.device, size: int) -> float:
    """Seconds of the fastest of REPEATS sums of `size` bytes, after one warm-up."""
    message = torch.zeros(size // 4, device=device)
    times = []
    for _ in range(1 + REPEATS):
        begin = time.perf_counter()
        group.allreduce([message]).wait()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def contribution(rank: int, number: int, dtype: torch.dtype) -> Tensor:
    """[number] of 0 and 1, in a pattern that depends on rank mod 3: sums in bfloat16 are exact in
    any order for up to 768 ranks."""
    return ((torch.arange(number) + rank) % _PATTERN == 0).to(dtype)


def wrong_sum(found: Tensor, size: int) -> str | None:
    """A description of wrong sums of the contributions of ranks 0 … size-1; None if all are
    right."""
    own = (contribution(r, len(found), torch.float32) for r in range(size))
    expected = sum(own, torch.zeros(len(found)))
    right = found.detach().to("cpu", torch.float32) == expected
    if bool(right.all()):
        return None
    first = int((~right).nonzero()[0])
    return (
        f"{int((~right).sum())} of {len(found)} sums are wrong, the first is "
        f"{float(found[first]):g} instead of {float(expected[first]):g}"
    )


# ---- rank 0 --------------------------------------------------------------------------------------


def combine(order: Mapping[str, Any], answers: Mapping[int, Mapping[str, Any]]) -> list[Sums]:
    """One result for each group. answers: the rendezvous's, by rank; a rank without an answer has
    failed."""
    return [_combined(order["backend"], group, answers) for group in order["groups"]]


def _combined(
    backend: str, members: Sequence[int], answers: Mapping[int, Mapping[str, Any]]
) -> Sums:
    answered = {}
    for rank in members:
        answer = answers.get(rank, {"error": "no answer"})
        answered[rank] = answer.get("answer") or {"failed": answer.get("error", "no answer")}
    failed = {rank: part["failed"] for rank, part in answered.items() if "failed" in part}
    wrong = next(
        (f"on rank {rank}: {p['wrong']}" for rank, p in answered.items() if "wrong" in p), None
    )
    if failed or wrong:
        return Sums(backend, tuple(members), None, wrong, failed)
    slowest = max(part["seconds"] for part in answered.values())
    bandwidth = 2 * (len(members) - 1) / len(members) * BYTES[backend] / slowest
    return Sums(backend, tuple(members), bandwidth)
