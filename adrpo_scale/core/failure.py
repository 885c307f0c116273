"""How a process leaves the others when it fails by itself.

The others know nothing of an exception on one rank: they wait in the next collective. Over NCCL the
teardown of a process group is collective, too. It waits for collectives that the others never join
until they time out, 80 GPUs idle meanwhile, and a message that is printed afterwards is never seen.
So the exception is printed at once, with its rank and node; the teardown is left out; and the
process ends without destructors, which would wait as well.
"""

from __future__ import annotations

import atexit
import re
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import AdrpoError, StopRequested
from adrpo_scale.core.exits import leave
from adrpo_scale.core.rank_facts import facts_or_one

_TOLD = "_adrpo_told"  # attribute of an exception that has been printed

# NCCL's own errors, and those of torch's two backends over it, have no class of their own in every
# version: "NCCL AllReduce failed: remote process exited or there was a network error".
_NCCL = re.compile(r"\bNCCL\b.*?\b(failed|aborted|timed out|error|process exited)\b", re.DOTALL)
_NCCL_MISUSED = re.compile(
    r"invalid (usage|argument)|Duplicate GPU", re.IGNORECASE
)  # at every start

_MEMORY = re.compile(r"can't allocate memory|\bout of memory\b", re.IGNORECASE)

_is_abandoned = False


def is_lost(error: BaseException) -> bool:
    """Whether an error comes from the loss of another process, of the network, or of this process's
    GPU, which the next preflight will name."""
    import torch  # here: a command that fails at once need not wait for it
    import torch.distributed as td

    if is_memory(error):
        return False  # NCCL's own allocations included
    gone = isinstance(error, td.DistError | torch.AcceleratorError)
    return gone or (isinstance(error, RuntimeError) and says_lost(str(error)))


def says_lost(text: str) -> bool:
    """Whether an error's text is that of a lost connection to another process. gloo's errors have
    no class of their own; their text names gloo's source file."""
    nccl = _NCCL.search(text) is not None and _NCCL_MISUSED.search(text) is None
    return "gloo/transport" in text or nccl


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the GPU or on the CPU."""
    import torch

    # The CPU's allocator, cuBLAS, cuDNN and NCCL raise RuntimeErrors.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None
    )


def is_agreed(error: BaseException) -> bool:
    """Whether every rank raises this error, at the same place."""
    return isinstance(error, StopRequested) or (isinstance(error, AdrpoError) and error.agreed)


def tell(error: BaseException) -> None:
    """Prints an exception once, with its rank and node: an agreed one on rank 0, a lost process in
    one line, an error of the user's in its own words, any other with its traceback."""
    facts = facts_or_one()
    if getattr(error, _TOLD, False) or (is_agreed(error) and not facts.is_main):
        return
    heard_of(error)
    alone = facts.world == 1
    who = "" if alone else f"[rank {facts.rank} on {socket.gethostname()}] "
    if isinstance(error, AdrpoError):
        text = f"{'' if is_agreed(error) else who}error: {error}"
    elif is_lost(error) and not alone:
        first = str(error).strip().partition("\n")[0]
        text = f"{who}lost another process, the network or its GPU in {watchdog.failed_in()}: "
        text += f"{type(error).__name__}: {first}"
    else:
        doing = "" if alone else f"{who}an exception in {watchdog.failed_in()}:\n"
        text = doing + "".join(traceback.format_exception(error)).rstrip()
    print(text, file=sys.stderr, flush=True)  # one write: those of other ranks do not mix into it


def tell_at_once(error: BaseException) -> None:
    """Tells an error of this rank alone before anything that may wait for the others, who know
    nothing of it."""
    if facts_or_one().world > 1 and not is_agreed(error):
        tell(error)


@contextmanager
def telling() -> Iterator[None]:
    """A block whose errors are told at once, before contexts around it wait for anything."""
    try:
        yield
    except Exception as error:
        tell_at_once(error)
        raise


def heard_of(error: BaseException) -> BaseException:
    """`error`, marked as one that another rank prints."""
    setattr(error, _TOLD, True)
    return error


def abandon(error: BaseException) -> None:
    """Tells the error and leaves the process group as it is: this process ends by `end`, at the
    latest when the interpreter does."""
    global _is_abandoned
    if not isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        tell(error)
    if not _is_abandoned:
        _is_abandoned = True
        atexit.register(end, 1)


def end(code: int | str | None) -> None:
    """Ends a process that has abandoned its group, with the code of `sys.exit`; does nothing in any
    other."""
    if not _is_abandoned:
        return
    if isinstance(code, str):
        print(code, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    leave(code if isinstance(code, int) else int(code is not None))
