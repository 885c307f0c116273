"""Time and peak memory of an iteration, by phase."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from adrpo_scale.core import dist, watchdog

PHASES = ("rollout", "reward", "update")


def reset_peak(device: torch.device) -> None:
    """Starts a new peak for `peak_bytes`."""
    if device.type == "cuda":
        torch.cuda.init()  # resetting before the first use of CUDA raises
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # without it, the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Peak memory since `reset_peak`, bytes: torch's allocations on a GPU; on the CPU, the resident
    memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
        if found is not None:
            return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Stopwatch:
    """Wall seconds and peak memory by phase, and CPU seconds of this process.

    Peak memory is measured on GPUs, and on the CPU with `with_memory`. before: the watch of the
    previous iteration. phase: the last one begun. peaks: bytes by phase.
    """

    def __init__(
        self, device: torch.device, before: Stopwatch | None = None, with_memory: bool = False
    ) -> None:
        self._device, self._with_memory = device, with_memory or device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._start, self._cpu = time.perf_counter(), time.process_time()
        self.end: float = self._start
        self._between = self._start - before.end if before is not None else 0.0
        self.phase = ""
        self.peaks: dict[str, int] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self.phase, start = phase, time.perf_counter()
        if self._with_memory:
            reset_peak(self._device)
        with watchdog.phase(phase):
            yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # kernels still running belong to this phase
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - start
        if self._with_memory:
            self.peaks[phase] = max(self.peaks.get(phase, 0), peak_bytes(self._device))

    def record(self, samples: int) -> dict[str, float]:
        """Seconds of this rank, and on GPUs the largest peaks of any rank. Collective on GPUs.

        samples: of the iteration, over all ranks. seconds_between: since the end of the previous
        iteration.
        """
        self.end = time.perf_counter()
        wall = self.end - self._start
        return {
            **{f"seconds_{phase}": self._seconds.get(phase, 0.0) for phase in PHASES},
            **self._peak_record(),
            "seconds": wall,
            "seconds_between": self._between,
            "cpu_seconds": time.process_time() - self._cpu,
            "samples_per_second": samples / wall,
        }

    def _peak_record(self) -> dict[str, float]:
        if self._device.type != "cuda":
            return {}
        mine = torch.tensor([self.peaks.get(phase, 0) for phase in PHASES], dtype=torch.float64)
        most = (dist.all_max(mine) / 1e9).tolist()
        return {f"peak_gb_{phase}": peak for phase, peak in zip(PHASES, most, strict=True)}
