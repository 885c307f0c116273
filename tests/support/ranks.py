"""`run_ranks` runs a function in N gloo processes on the CPU, as a launcher would start them.

Processes are forked from one forkserver that has imported the heavy libraries already, so a start
takes hundredths of a second instead of many. They inherit the environment of the forkserver's
start: a variable that a test sets afterwards does not reach them, pass it on in `args`.
"""

from __future__ import annotations

import faulthandler
import functools
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as td

from adrpo_scale.core.dist import process_group, rank_facts
from tests.support import rounding

# Whatever a run imports, early or late: each line saves tenths of a second in every process.
PRELOAD = [
    "torch",
    "torch.distributed",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.utils.tensorboard",
    "deepspeed",
    "deepspeed.runtime.zero.muon.muon_optimizer",  # what ZeRO-3 imports late, in seconds
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.ops.op_builder.all_ops",
    "diffusers.models.transformers.transformer_sd3",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "transformers.models.clip.modeling_clip",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni",
    "transformers.models.whisper.feature_extraction_whisper",
    "peft",
    "peft.utils.transformers_weight_conversion",
    "PIL.PngImagePlugin",
    "matplotlib.pyplot",  # pictures of an evaluation
    "pandas",  # which pyarrow imports to write a table
    "pyarrow.pandas_compat",
    "pytest",
    "adrpo_scale.run.train",
    "adrpo_scale.cli.main",
    "tests.support.ranks",
    "tests.support.warm",
    "tests.support.frozen",  # the last
]
THREADS = os.environ.get("OMP_NUM_THREADS", "1")  # of each process
# Read at import, so they must be set before the forkserver imports anything. Further variables,
# such as MKL_CBWR, reach it from the environment of pytest.
FORKSERVER_ENV = {
    "OMP_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    "OPENBLAS_NUM_THREADS": THREADS,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
}
LONGEST = 240.0  # seconds: what hangs, hangs longer; what is slow on a busy machine is no failure
LAST_WORDS_SECONDS = 0.5  # what hung ranks have to write down where they are


class RankError(Exception):
    """A rank raised, died or hung; the message has its traceback."""


def launched(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets for a rank, where the launcher's store is at `port`."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def run_ranks(
    function: Callable[..., Any],
    world: int,
    *args: Any,
    timeout: float = LONGEST,
    grouped: bool = True,
) -> list[Any]:
    """`function(rank, world, *args)` in `world` processes; the results in rank order.

    The processes form a gloo group through `adrpo_scale.core.dist.process_group` (world = 1: a
    process of its own, no group), or `function` joins one itself (grouped=False). function: at
    module level of a test file; args and results: picklable.
    timeout: seconds for all of it, the start of the forkserver excepted.
    Raises RankError with the traceback of the first rank that raised, or with where each rank was
    at the timeout; the other ranks are ended.
    """
    context = forkserver()
    # The store is made here, as torchrun's does, so no port has to be guessed and then be free.
    store = td.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    work = pickle.dumps((function, args, grouped))
    deadline = time.monotonic() + timeout
    readers: list[connection.Connection] = []
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(world):
                reader, writer = context.Pipe(duplex=False)
                environment = launched(rank, world, store.port)
                process = context.Process(
                    target=_one_rank,
                    args=(environment, work, writer, timeout, deadline, stack_file(folder, rank)),
                )
                process.start()
                writer.close()
                readers.append(reader)
                processes.append(process)
            results = _collect(readers, deadline, folder)
            for rank, process in enumerate(processes):
                process.join(max(0.1, deadline + LAST_WORDS_SECONDS - time.monotonic()))
                if process.exitcode != 0:
                    raise RankError(
                        f"rank {rank} of {world} returned, then did not end in order: exit code "
                        f"{process.exitcode} (None: still running)"
                    )
            return results
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(1)
                if process.exitcode is None:
                    process.kill()
                    process.join()
            for reader in readers:
                reader.close()


def _collect(readers: list[connection.Connection], deadline: float, folder: str) -> list[Any]:
    """Every rank's result; RankError as soon as one fails or time is up."""
    world = len(readers)
    results: dict[int, Any] = {}
    waiting = {reader: rank for rank, reader in enumerate(readers)}
    while waiting:
        left = deadline + LAST_WORDS_SECONDS - time.monotonic()
        ready = connection.wait(list(waiting), max(0, left))
        if not ready:
            raise RankError(_describe_hang(sorted(waiting.values()), world, folder))
        for reader in ready:
            assert isinstance(reader, connection.Connection)
            rank = waiting.pop(reader)
            try:
                is_result, value = pickle.loads(reader.recv_bytes())
            except EOFError:
                raise RankError(f"rank {rank} of {world} died without an exception") from None
            if not is_result:
                raise RankError(f"rank {rank} of {world} raised\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(world)]


def stack_file(folder: str, rank: int) -> str:
    return f"{folder}/stack-{rank}.txt"


def _describe_hang(hung: list[int], world: int, folder: str) -> str:
    stacks = [Path(stack_file(folder, rank)) for rank in hung]
    texts = [path.read_text() if path.exists() else "(not started)" for path in stacks]
    where = "\n".join(f"rank {rank}:\n{text}" for rank, text in zip(hung, texts, strict=True))
    return f"time is up and ranks {hung} of {world} have not returned; they are at\n{where}"


def _one_rank(
    environment: dict[str, str],
    work: bytes,
    writer: connection.Connection,
    timeout: float,
    deadline: float,
    stack_path: str,
) -> None:
    """The body of one process. An error is sent before the group is left: leaving would first
    raise "connection closed" on the other ranks, and they would be taken for the cause."""
    with open(stack_path, "w") as stack:
        faulthandler.dump_traceback_later(max(0.01, deadline - time.monotonic()), file=stack)
        os.environ.update(environment)
        prepare_process()
        try:
            function, args, grouped = pickle.loads(work)
            # Later than ours: our message shows where every rank was, gloo's only one of them.
            group = process_group("cpu", timeout_seconds=timeout + 10)
            with group if grouped else nullcontext(rank_facts()) as facts:
                try:
                    answer = pickle.dumps((True, function(facts.rank, facts.world, *args)))
                except BaseException:
                    writer.send_bytes(pickle.dumps((False, traceback.format_exc())))
                    raise
            writer.send_bytes(answer)
        except BaseException:
            # A second message where the first was the cause; nobody reads it then.
            writer.send_bytes(pickle.dumps((False, traceback.format_exc())))
            sys.exit(1)
        finally:
            faulthandler.cancel_dump_traceback_later()


def prepare_process() -> None:
    """What every forked process does first."""
    torch.set_num_threads(int(THREADS))
    rounding.install()


@functools.cache
def forkserver() -> Any:
    """The multiprocessing context, its server started with everything in PRELOAD imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with mock.patch.dict(os.environ, FORKSERVER_ENV):
        process = context.Process(target=_nothing)
        process.start()
    process.join()
    return context


def _nothing() -> None:
    """What the first process runs: starting it waits until the forkserver has imported PRELOAD."""
