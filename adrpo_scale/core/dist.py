"""Collectives that also work without a process group; the rank facts are those of `rank_facts`.

Small values (ids, rewards, counts) travel as CPU tensors over gloo, also on a GPU cluster, so that
float64 and int64 arrive as they were sent; rows of samples travel on the device that holds them.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.rendezvous import rendezvous

from adrpo_scale.core import failure, signals, watchdog
from adrpo_scale.core.errors import AdrpoError, StopRequested, agreed
from adrpo_scale.core.loopback import keep_gloo_inside, loopback_store, on_one_machine
from adrpo_scale.core.plain_objects import packed, unpacked
from adrpo_scale.core.rank_facts import RankFacts as RankFacts
from adrpo_scale.core.rank_facts import meeting_point as meeting_point
from adrpo_scale.core.rank_facts import rank_facts as rank_facts
from adrpo_scale.core.rank_facts import set_srun_rendezvous as set_srun_rendezvous
from adrpo_scale.core.rank_facts import stated_number as stated_number

Ask = Callable[[Any], list[Any]]
"""A question to every rank → their answers, in rank order."""

_joined = itertools.count()  # groups that this process has joined: a script may train several runs


_opened: dict[int, td.Store] = {}  # stores of this machine's ranks, by port


def _store(facts: RankFacts, timeout: timedelta) -> td.Store | None:
    """The store through which the ranks find each other; None for the launcher's own."""
    number = next(_joined)
    host, port = meeting_point(facts.world)
    has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if on_one_machine(facts, host):
        keep_gloo_inside()
        if not has_store:
            if port not in _opened:
                _opened[port] = loopback_store(port, facts.is_main, timeout)
            return td.PrefixStore(f"group-{number}", _opened[port])
    if number == 0:
        return None
    # The launcher's store still has the addresses of the previous group, where nothing listens.
    store, _, _ = next(iter(rendezvous("env://", facts.rank, facts.world, timeout=timeout)))
    return td.PrefixStore(f"group-{number}", store)


@contextmanager
def process_group(device: str = "cpu", timeout_seconds: float = 1800) -> Iterator[RankFacts]:
    """Joins the process group, if there is more than one process, and leaves it at the end.

    device: "cpu" (gloo) or "cuda" (NCCL for CUDA tensors, gloo for CPU tensors).
    """
    facts = rank_facts()
    if device == "cuda":
        torch.cuda.set_device(facts.local_rank)
    if facts.world == 1 or td.is_initialized():
        yield facts
        return
    if facts.launcher == "srun":
        set_srun_rendezvous()
    timeout = timedelta(seconds=timeout_seconds)
    td.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=_store(facts, timeout),
        rank=facts.rank,
        world_size=facts.world,
        timeout=timeout,
        # NCCL would bind to LOCAL_RANK, which srun does not set, or to a guess by the rank.
        device_id=torch.device("cuda", facts.local_rank) if device == "cuda" else None,
    )
    try:
        yield facts
    except BaseException as error:
        if not failure.is_agreed(error):
            failure.abandon(error)
            raise
        td.destroy_process_group()
        raise
    # Without this barrier a rank with gloo sub-groups sometimes aborts while the others are
    # still leaving, and its exit code is wrong.
    td.barrier()
    td.destroy_process_group()


def hold_timeout(timeout_seconds: float) -> None:
    """Gives every group of this process the same timeout: those that a library makes for a mesh,
    or for its shards, would have the library's default."""
    set_timeout = getattr(td, "set_timeout", distributed_c10d._set_pg_timeout)  # since torch 2.15
    for group in list(distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=timeout_seconds), group)


def rank() -> int:
    return td.get_rank() if td.is_initialized() else 0


def world_size() -> int:
    return td.get_world_size() if td.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def barrier() -> None:
    if world_size() > 1:
        td.barrier()


def new_group(timeout_seconds: float) -> Any:
    """A separate gloo group of all ranks, for collectives that run beside the loop's (in another
    thread, or between any two of them); None in a single process. Collective."""
    if world_size() == 1:
        return None
    return td.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


def block(total: int, rank: int, world: int) -> range:
    """The rows of `rank` when `total` rows lie in `world` contiguous blocks.

    Blocks differ by at most one row; with fewer rows than ranks some are empty.
    """
    return range(total * rank // world, total * (rank + 1) // world)


def all_sum(value: Tensor) -> Tensor:
    """Sum over ranks of a tensor of equal shape everywhere; the input is left as it was."""
    if world_size() == 1:
        return value
    total = value.clone()
    td.all_reduce(total)
    return total


def all_max(value: Tensor, group: Any = None) -> Tensor:
    """Elementwise maximum over ranks of a tensor of equal shape everywhere."""
    if world_size() == 1:
        return value
    largest = value.clone()
    td.all_reduce(largest, op=td.ReduceOp.MAX, group=group)
    return largest


def gather_rows(rows: Tensor) -> Tensor:
    """[n_r, ...] on each rank → [sum n_r, ...] on every rank, in rank order; n_r may be 0.

    dtype and trailing shape must be equal on all ranks.
    """
    if world_size() == 1:
        return rows
    counts = gather_objects(len(rows))
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    td.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])


def gather_objects(value: Any, group: Any = None, *, to_main: bool = False) -> list[Any]:
    """The `value` of every rank, in rank order, on every rank: small, of what `plain_objects` lets
    travel. Raises RuntimeError for another, on every rank that is told it.

    to_main: rank 0 alone is told, the others get []; for what grows with the ranks.
    """
    if world_size() == 1:
        return [value]
    mine = _as_tensor(packed(value))
    lengths = [torch.empty(1, dtype=torch.int64) for _ in range(world_size())]
    td.all_gather(lengths, torch.tensor([len(mine)]), group=group)
    padded = mine.new_zeros(int(max(lengths)))
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in lengths if is_main() or not to_main]
    if to_main:
        td.gather(padded, parts or None, dst=0, group=group)
    else:
        td.all_gather(parts, padded, group=group)
    return [unpacked(_bytes(part[: int(n)])) for part, n in zip(parts, lengths, strict=False)]


def broadcast_object(value: Any, group: Any = None) -> Any:
    """Rank 0's `value` on every rank; see `gather_objects`."""
    if world_size() == 1:
        return value
    data = _as_tensor(packed(value) if is_main() else b"")
    length = torch.tensor([len(data)])
    td.broadcast(length, src=0, group=group)
    if not is_main():
        data = torch.empty(int(length), dtype=torch.uint8)
    td.broadcast(data, src=0, group=group)
    found = unpacked(_bytes(data))
    return value if is_main() else found


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0)


def _bytes(data: Tensor) -> bytes:
    return data.numpy().tobytes()


def broadcast_tensor(tensor: Tensor) -> None:
    """Gives a contiguous tensor rank 0's contents on every rank, in place."""
    if world_size() > 1:
        td.broadcast(tensor.view(-1).view(torch.uint8), src=0)  # gloo does not take every dtype


def exchange_rows(rows: Tensor, sources: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Sends chosen rows to chosen ranks.

    rows: [n, ...] on this rank. sources[r]: int64 local indices of the rows that rank r gets.
    counts[r]: how many rows rank r sends to this rank. Returns [sum counts, ...], ordered by
    sending rank. Trailing shape and dtype must be equal on all ranks, also where n is 0.
    """
    outgoing = torch.cat([rows[index.to(rows.device)] for index in sources])
    if world_size() == 1:
        return outgoing
    incoming = rows.new_empty(sum(counts), *rows.shape[1:])
    td.all_to_all_single(incoming, outgoing, list(counts), [len(index) for index in sources])
    return incoming


# group: of the ranks that wait for this thread, in a tuple; told: when they last heard of it.
_working = threading.local()
_TELL_EVERY = 1.0  # seconds: a message takes a millisecond


def run_on_main(build: Any, group: Any = None) -> Any:
    """The result of rank 0's `build()`, on every rank.

    An exception on rank 0 is raised on every rank: the others would otherwise wait in the next
    collective until the timeout. A long `build` calls `still_working` in its loops (`pace` does),
    so that those who wait neither time out nor are taken for hung.
    """
    if not is_main():
        while True:
            is_done, content = broadcast_object(None, group)
            if is_done:
                return _settled(content, None)
            watchdog.beat()
            all_max(_heard(), group)
    outer, _working.group = getattr(_working, "group", None), (group,)
    try:
        result, error = _tried(build)
    finally:
        _working.group = outer
    if error is not None and failure.is_lost(error) and world_size() > 1:
        raise error  # a broadcast would fail: another rank is gone
    told = (result, _portable(error))
    broadcast_object((True, told), group)
    return _settled(told, error)


def is_waited_for() -> bool:
    """Whether this thread is inside the `build` of `run_on_main`."""
    return getattr(_working, "group", None) is not None


def still_working() -> bool:
    """Tells the ranks that wait for this `build`, not too often, that it goes on. Returns whether a
    signal asked any of them to stop."""
    if world_size() == 1:
        return signals.heard()
    now = time.monotonic()
    if now - getattr(_working, "told", 0.0) < _TELL_EVERY:
        return False
    _working.told = now
    (group,) = _working.group
    broadcast_object((False, None), group)
    return bool(all_max(_heard(), group))


def _heard() -> Tensor:
    return torch.tensor(float(signals.heard()))


def lead(work: Callable[[Ask], Any], serve: Callable[[Any], Any]) -> Any:
    """The result of rank 0's `work(ask)`, on every rank, like `run_on_main`, for work that needs
    all ranks at times: `ask(question)` returns every rank's `serve(question)`, in rank order.

    Questions and answers are those of `gather_objects`. `serve` must not raise: the ranks would be
    out of step.
    """
    if not is_main():
        while True:
            is_question, content = broadcast_object(None)
            if not is_question:
                return _settled(content, None)
            gather_objects(serve(content))

    def ask(question: Any) -> list[Any]:
        broadcast_object((True, question))
        return gather_objects(serve(question))

    result, error = _tried(lambda: work(ask))
    if error is not None and failure.is_lost(error):
        raise error  # a broadcast would fail: another rank is gone
    told = (result, _portable(error))
    broadcast_object((False, told))
    return _settled(told, error)


def _tried(build: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return build(), None
    except Exception as caught:
        return None, caught


def _settled(told: tuple[Any, Exception | None], error: Exception | None) -> Any:
    """The result that rank 0 sent; raises its exception. error: rank 0's own, None elsewhere."""
    result, portable = told
    if portable is None:
        return result
    if isinstance(portable, AdrpoError):
        raise agreed(error if isinstance(error, AdrpoError) else portable)
    raise error or failure.heard_of(portable)


def _portable(error: Exception | None) -> Exception | None:
    """The error for the other ranks: one of ours itself, of any other the text. Exceptions of
    other libraries (HTTP clients') may not be picklable, and the ranks would hang."""
    if error is None or isinstance(error, AdrpoError | StopRequested):
        return error
    return RuntimeError(f"{type(error).__name__} on rank 0: {error}")
