"""What only two GPUs show: NCCL between ranks, and what is left when one of them fails."""

from __future__ import annotations

import sys
import time

import torch

from adrpo_scale.core import dist
from adrpo_scale.engines.fsdp2 import sum_gradients
from tests.gpu.steps.base import Case, NotRun
from tests.gpu.steps.command import PLANTED
from tests.gpu.steps.processes import (
    TASKS,
    Running,
    command,
    start,
    start_ranks,
    train_words,
    wait_all,
)
from tests.gpu.steps.sharing import SETTINGS, largest_difference

LOST, KILLED = 86, -9


def _need_two(case: Case) -> None:
    if not case.is_dry and torch.cuda.device_count() < 2:
        raise NotRun(f"torch sees {torch.cuda.device_count()} GPUs, two are needed")


def _tails(case: Case, ranks: list[Running]) -> None:
    case.note(output=[rank.tail for rank in ranks])


def exchange(case: Case) -> None:
    """The collectives of `core.dist` and of an engine's step, between two ranks."""
    _need_two(case)
    ranks = start_ranks(["tests.gpu.steps.two", case.device], 2, case.folder)
    codes = wait_all(ranks, case.seconds - 5)
    if codes != [0, 0]:
        _tails(case, ranks)
    case.check("rows, gradients and objects arrive", codes == [0, 0], codes)


def exchanges(device: str) -> None:
    """The body of one rank of `exchange`."""
    with dist.process_group(device, 60) as facts:
        rank, place = facts.rank, torch.device(device, facts.local_rank if device == "cuda" else 0)
        rows = (torch.arange(8).view(4, 2) + 100 * rank).to(place)
        sources = [torch.tensor([0, 3]), torch.tensor([1])]  # for rank 0 and for rank 1
        counts = [2, 2] if rank == 0 else [1, 1]
        got = dist.exchange_rows(rows, sources, counts).cpu()
        own, other = torch.arange(8).view(4, 2), torch.arange(8).view(4, 2) + 100
        wanted = [0, 3] if rank == 0 else [1]
        assert torch.equal(got, torch.cat([own[wanted], other[wanted]])), got
        gathered = dist.gather_rows(rows[: rank + 1]).cpu()
        assert torch.equal(gathered, torch.cat([own[:1], other[:2]])), gathered
        parameters = [torch.zeros(5, device=place, requires_grad=True) for _ in range(2)]
        parameters[rank].grad = torch.full((5,), 1.0 + rank, device=place)
        sum_gradients(list(parameters))
        sums = [float(p.grad[0]) for p in parameters if p.grad is not None]
        assert sums == [1.0, 2.0], sums
        assert dist.gather_objects({"rank": rank}) == [{"rank": 0}, {"rank": 1}]
        total = dist.all_sum(torch.ones(3, dtype=torch.float64))
        assert float(total[0]) == 2.0
        dist.barrier()


def sharded(case: Case, how: str) -> None:
    """Two iterations on two ranks, against one rank's."""
    _need_two(case)
    settings = [*SETTINGS, f"engine.device={case.device}"]
    alone, both = case.folder / "alone", case.folder / "both"
    one = start(command(train_words(TASKS["text"], alone, settings)), case.folder / "alone.txt")
    code = one.wait(case.seconds * 0.4)
    more = ["engine.name=zero3", "engine.shard=all"] if how == "zero3" else ["engine.shard=all"]
    words = train_words(TASKS["text"], both, [*settings, *more])
    ranks = start_ranks(command(words, "mesh" if how == "mesh" else ""), 2, case.folder)
    codes = [code, *wait_all(ranks, case.seconds * 0.5)]
    if codes != [0, 0, 0]:
        _tails(case, [one, *ranks])
    case.check("all processes end with 0", codes == [0, 0, 0], codes)
    if codes == [0, 0, 0]:
        off = largest_difference(alone, both)
        case.check("trained weights equal one rank's to 1e-3", off < 1e-3, off)


def raises(case: Case) -> None:
    """F1 of the review: an exception on rank 1 in a backward pass. It is printed at once, and both
    ranks are gone long before any collective times out."""
    ranks, codes, seconds = _faulty(case, "raise=2")
    said = PLANTED in ranks[1].text
    case.check("rank 1 prints its error", said, ranks[1].tail)
    case.check("both ranks end by themselves within 90 s", None not in codes, codes)
    case.note(exit_codes=codes, seconds=seconds)
    case.check("no rank ends with 0", 0 not in codes, codes)


def killed(case: Case) -> None:
    """F2: SIGKILL of rank 1. The other asks for a requeue: 86, or the signal of NCCL's watchdog."""
    _, codes, seconds = _faulty(case, "kill=2")
    case.note(exit_codes=codes, seconds=seconds)
    case.check("rank 1 was killed", codes[1] == KILLED, codes)
    good = codes[0] == LOST or (codes[0] is not None and codes[0] < 0)
    case.check("rank 0 ends with 86 or a signal, never 1", good, codes)


def _faulty(case: Case, fault: str) -> tuple[list[Running], list[int | None], float]:
    _need_two(case)
    settings = [*SETTINGS, f"engine.device={case.device}", "engine.shard=all"]
    words = train_words(TASKS["text"], case.folder / "run", settings)
    ranks = start_ranks(command(words, fault), 2, case.folder)
    begin = time.monotonic()
    codes = wait_all(ranks, case.seconds - 20)
    _tails(case, ranks)
    return ranks, codes, time.monotonic() - begin


def preflight(case: Case) -> None:
    """The command `preflight` on both ranks."""
    _need_two(case)
    words = ["preflight", str(TASKS["text"]), "--set", f"engine.device={case.device}"]
    ranks = start_ranks(command(words), 2, case.folder)
    codes = wait_all(ranks, case.seconds - 5)
    _tails(case, ranks)
    case.check("preflight ends with 0 on both", codes == [0, 0], codes)


if __name__ == "__main__":
    exchanges(sys.argv[1])
