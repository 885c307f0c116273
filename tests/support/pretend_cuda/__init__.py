"""A pretended CUDA device: real numbers in CPU memory, the rules of a GPU around them.

    with pretend_cuda() as seen: ...   # torch.cuda.is_available() is True inside

What works and what it cannot see: docs/internals/pretended-device.md. It holds for the thread that
enters it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from tests.support.pretend_cuda import state
from tests.support.pretend_cuda.dispatch import Calls, Operators
from tests.support.pretend_cuda.seen import Fault, Seen
from tests.support.pretend_cuda.stubs import installed

__all__ = ["Fault", "Seen", "pretend_cuda"]


@contextlib.contextmanager
def pretend_cuda(devices: int = 1) -> Iterator[Seen]:
    """A context in which this process has `devices` CUDA devices. Raises Fault at once for what
    they would refuse, and at the end for what other code has caught."""
    torch._C._ensureCUDADeviceGuardSet()
    now = state.begin(devices)
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device="cuda") is then a copy
    try:
        with installed(now), Operators(), Calls():
            yield now.seen
        if now.seen.problems:
            raise Fault("caught by other code: " + "; ".join(now.seen.problems))
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)
        state.end()
