"""CPU-seconds and memory of a rank's bookkeeping at 8, 80 and 512 ranks, by the real code.

    python -m benchmarks.scale [--worlds 8,80,512] [--out benchmarks/results/scale-cpu.json]

One process is rank 0 of a group that exists on paper: collectives return at once, so what is
counted is the work of one rank and not the network. The number of samples grows with the ranks,
eight a rank, as the shipped configs have it on 80 GPUs. `growth` is the exponent p of world^p
between the two largest worlds: 0 does not grow, 1 grows like the ranks.
"""

from __future__ import annotations

import argparse
import json
import math
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td

from adrpo_scale.checkpoint.base import Manifest, check_tiling
from adrpo_scale.checkpoint.staging import share
from adrpo_scale.checkpoint.store import FULL, _assemble, _Job, _Written
from adrpo_scale.cluster.preflight.base import Place
from adrpo_scale.cluster.preflight.rendezvous import Meeting
from adrpo_scale.core.plain_objects import packed, unpacked
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.core.types import Credit, FlatRange, Rows
from adrpo_scale.engines.fake import fake_ranks
from adrpo_scale.engines.planning import Ranks
from adrpo_scale.run.starts import environment
from adrpo_scale.training.batches import build_minibatches

EACH, PER_NODE = 8, 8
# Shapes of the trained tensors: adapters of SD3-medium, and all of a Qwen3-0.6B.
SHAPES = {
    "adapters": [(32, 1536), (1536, 32)] * 192,
    "all parameters": [(151936, 1024)]
    + [(2048, 1024), (1024, 1024), (1024, 1024), (1024, 2048), (128,), (128,)] * 28
    + [(3072, 1024), (3072, 1024), (1024, 3072), (1024,), (1024,)] * 28,
}


def deal_and_exchange(world: int) -> Callable[[], Any]:
    """The plan of which rank trains on which rows, and this rank's part of the exchange."""
    samples = EACH * world
    own = torch.arange(EACH)
    rows = Rows(own, own // 8, {"tokens": torch.zeros(EACH, 1024, dtype=torch.int64)})
    ones = torch.ones(samples, dtype=torch.float64)
    credit = Credit(ones, ones, ones, torch.full((samples,), -1), ones)
    sizes = torch.randint(1, 512, (samples,), generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        return build_minibatches(
            rows,
            torch.arange(samples),
            credit,
            torch.arange(samples) // 8,
            rows_per_unit=1,
            minibatches=1,
            micro_batch=8,
            sizes_S=sizes,
        )

    return run


def gather(world: int) -> Callable[[], Any]:
    """What a rank reads of one gathered message of every rank: the facts of its start."""
    message = packed(environment())
    return lambda: [unpacked(message) for _ in range(world)]


SETS = ("policy", "exp_avg", "exp_avg_sq")


def _pieces(shapes: Sequence[tuple[int, ...]], rank: int, world: int) -> _Written:
    """What a rank of `world` replicas tells rank 0 of its file."""
    stated = []
    for part in SETS:
        for number, shape in enumerate(shapes):
            place = FlatRange(shape, 0, math.prod(shape), rank, world)
            start, stop = share(place, number)
            if start < stop:
                stated.append((part, f"blocks.{number}.weight", start, stop))
    return _Written([(FileFacts(f"rank-{rank:03d}.safetensors", 1, "0" * 64), stated)])


def commit(shapes: Sequence[tuple[int, ...]], world: int) -> Callable[[], Any]:
    """Rank 0's manifest of a checkpoint that `world` replicas have written, and its text."""
    parts = [_pieces(shapes, rank, world) for rank in range(world)]
    named = {f"blocks.{number}.weight": shape for number, shape in enumerate(shapes)}
    job = _Job(FULL, 1, Path("step-000001"), dict.fromkeys(SETS, named), [], {}, lambda: None, 0.0)

    def run() -> int:
        manifest: Manifest = _assemble(job, parts)
        check_tiling(manifest.sets, job.folder)
        return len(manifest.to_text())

    return run


def gathered(shapes: Sequence[tuple[int, ...]], world: int) -> Callable[[], Any]:
    """The bytes that ranks send rank 0 before it commits, and its reading of them."""
    messages = [packed(_pieces(shapes, rank, world)) for rank in range(world)]

    def run() -> int:
        for message in messages:
            unpacked(message)
        return sum(map(len, messages))

    return run


def rendezvous(world: int) -> Callable[[], Any]:
    """Preflight's hellos and one order: rank 0's side, over a real store. Peers are simulated."""
    store = td.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def peers() -> None:
        mine = td.TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
        for rank in range(1, world):
            peer = Meeting(mine, Place(rank, world, rank % PER_NODE, PER_NODE), 60)
            peer.hello()
            peer._set(f"answer/0/{rank}", {"answer": environment()})

    def run() -> int:
        thread = threading.Thread(target=peers)
        thread.start()
        thread.join()  # first: its time is not rank 0's
        begin.append(time.thread_time())
        meeting = Meeting(store, Place(0, world, 0, PER_NODE), 60)
        meeting.hello()
        assert meeting.absent() == []
        return len(meeting.ask({"do": "look"}, lambda order: environment()))

    begin: list[float] = []
    run.begin = begin  # type: ignore[attr-defined]
    return run


TASKS: dict[str, Callable[[int], Callable[[], Any]]] = {
    "deal and exchange": deal_and_exchange,
    "read one gathered message of each rank": gather,
    "commit, adapters": lambda world: commit(SHAPES["adapters"], world),
    "commit, all parameters": lambda world: commit(SHAPES["all parameters"], world),
    "gathered pieces, adapters": lambda world: gathered(SHAPES["adapters"], world),
    "gathered pieces, all parameters": lambda world: gathered(SHAPES["all parameters"], world),
    "preflight's rendezvous": rendezvous,
}


def measured(make: Callable[[int], Callable[[], Any]], world: int) -> dict[str, float]:
    """CPU-seconds of this thread and peak MB of Python's allocations; and the result, if a
    number."""
    with fake_ranks(Ranks(world, PER_NODE)):
        run = make(world)
        begin = time.thread_time()
        result = run()
        begin = next(iter(getattr(run, "begin", [])), begin)
        seconds = time.thread_time() - begin
        again = make(world)
        tracemalloc.start()
        again()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    found = {"cpu_seconds": seconds, "peak_mb": peak / 1e6}
    return found | ({"result": result} if isinstance(result, int) else {})


def growth(worlds: Sequence[int], values: Sequence[float]) -> float:
    return math.log(values[-1] / values[-2]) / math.log(worlds[-1] / worlds[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", default="8,80,512")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    worlds = [int(word) for word in given.worlds.split(",")]
    table = {}
    for name, make in TASKS.items():
        found = [measured(make, world) for world in worlds]
        exponents = {
            key: round(growth(worlds, [one[key] for one in found]), 2)
            for key in ("cpu_seconds", "peak_mb")
        }
        table[name] = {"by_world": dict(zip(worlds, found, strict=True)), "growth": exponents}
        cells = "  ".join(
            f"{w}: {one['cpu_seconds']:.3g} s {one['peak_mb']:.3g} MB"
            + (f" ({one['result']:.3g})" if "result" in one else "")
            for w, one in zip(worlds, found, strict=True)
        )
        print(f"{name:40} {cells}  growth {exponents}", flush=True)
    if given.out is not None:
        given.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
