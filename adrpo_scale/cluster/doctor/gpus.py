"""GPUs as torch sees them: the driver against the wheel, each GPU in use, and pairs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from adrpo_scale.cluster.preflight.base import Check, Finding, Place, counted
from adrpo_scale.cluster.preflight.gpu_checks import MINIMUM_DRIVER
from adrpo_scale.cluster.preflight.node import CudaFacts, GpuFacts
from adrpo_scale.cluster.preflight.survey import cuda_facts, gpu_facts
from adrpo_scale.core.disk_space import size_text


@dataclass(frozen=True)
class Gpus:
    """found: every visible GPU, after a small product on it. apart: pairs that cannot read each
    other's memory. nccl: its version; None without CUDA."""

    cuda: CudaFacts
    found: tuple[GpuFacts, ...]
    apart: tuple[tuple[int, int], ...]
    nccl: str | None


def look() -> Gpus:
    """The facts of this machine."""
    cuda = cuda_facts()
    seen = [gpu_facts(Place(local_rank=index)) for index in range(cuda.count)]
    numbers = range(cuda.count)
    apart = [
        (a, b)
        for a in numbers
        for b in numbers
        if a < b and not torch.cuda.can_device_access_peer(a, b)
    ]
    version = torch.cuda.nccl.version() if cuda.available else None  # type: ignore[no-untyped-call]
    nccl = None if version is None else ".".join(map(str, version))
    return Gpus(cuda, tuple(gpu for gpu in seen if gpu is not None), tuple(apart), nccl)


def check_driver(cuda: CudaFacts) -> Check:
    """The installed torch and the driver fit; without a driver there is nothing to fit."""
    stated = f"torch for CUDA {cuda.wheel or 'none'}, driver {cuda.driver or 'none'}"
    if cuda.available or (cuda.driver is None and not cuda.granted):
        return Check("driver", stated)
    expected = "a torch that this driver can run"
    if cuda.driver is None:
        remedy = "ask Slurm for a GPU (srun --gpus=1), or a node whose driver is loaded: nvidia-smi"
        finding = Finding("fault", f"{stated}; Slurm granted {cuda.granted}", "a driver", remedy)
        return Check("driver", stated, (finding,))
    newest = newest_cuda(cuda.driver)
    wheel = "a newer driver" if newest is None else f"a torch built for CUDA {newest}"
    if cuda.wheel is not None and newest is not None and cuda.wheel.split(".")[0] == newest:
        return Check("driver", stated, (Finding("fault", f"{stated}: {cuda.why}", expected, _ASK),))
    remedy = f"install {wheel}: docs/start/install.md says how"
    return Check("driver", stated, (Finding("fault", f"{stated}: {cuda.why}", expected, remedy),))


_ASK = "nvidia-smi says what the driver sees; CUDA_VISIBLE_DEVICES may hide the GPUs"


def newest_cuda(driver: str) -> str | None:
    """The newest major version of CUDA that a driver runs; None for one older than all known."""
    fit = [major for major, least in MINIMUM_DRIVER.items() if _parts(driver) >= _parts(least)]
    return max(fit, key=int, default=None)


def _parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]


def check_each(gpus: Gpus) -> Check:
    """Every visible GPU computes."""
    if not gpus.cuda.available:
        return Check("gpus", "none: a run would compute on the CPU")
    remedy = "report it: nvidia-smi -q and dmesg (Xid) say more"
    faults = [
        Finding("fault", f"GPU {gpu.index}: {gpu.error}", "it multiplies two matrices", remedy)
        for gpu in gpus.found
        if gpu.error is not None
    ]
    names = [
        f"{gpu.index} {gpu.name}, {size_text(gpu.used)} of {size_text(gpu.total)} in use"
        + (f" by {', '.join(gpu.users)}" if gpu.users else "")
        for gpu in gpus.found
        if gpu.error is None
    ]
    return Check("gpus", "; ".join(names), tuple(faults))


def check_pairs(gpus: Gpus) -> Check:
    """GPUs of a node read each other's memory, or NCCL goes through the host's."""
    count = len(gpus.found)
    if count < 2:
        return Check("peers", f"{counted(count, 'GPU')}: no pair to look at")
    if not gpus.apart:
        return Check("peers", f"all {count * (count - 1) // 2} pairs read each other's memory")
    pairs = ", ".join(f"{a}–{b}" for a, b in gpus.apart[:8])
    finding = Finding(
        "warning",
        f"no peer access between {pairs}{' and more' if len(gpus.apart) > 8 else ''}",
        "GPUs that read each other's memory",
        "it works, slower; where NCCL hangs, try NCCL_P2P_DISABLE=1 and see IOMMU and ACS settings",
    )
    return Check("peers", "", (finding,))


def checks(gpus: Gpus) -> Sequence[Check]:
    found = [check_driver(gpus.cuda), check_each(gpus), check_pairs(gpus)]
    return [*found, Check("nccl", gpus.nccl or "not in use without CUDA")]
