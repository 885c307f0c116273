"""Steps about the machine itself: what there is, `preflight`, and the tests that pytest runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from tests.gpu.steps import processes
from tests.gpu.steps.base import Case, NotRun

PACKAGES = ("torch", "transformers", "diffusers", "peft", "deepspeed", "accelerate", "triton")


def environment(case: Case) -> None:
    """Versions, the device, and the two rates that every other figure is held against."""
    cuda = torch.cuda.is_available()
    case.note(
        python=platform.python_version(),
        cores=os.cpu_count(),
        versions={name: _version(name) for name in PACKAGES},
        cuda=torch.version.cuda,
        nccl=".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        nvcc=shutil.which("nvcc"),
        tf32={"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": _cudnn_tf32()},
    )
    case.check("torch sees a GPU", cuda or case.is_dry, cuda)
    if cuda:
        facts = torch.cuda.get_device_properties(0)
        case.note(gpu=facts.name, memory_gib=facts.total_memory / 2**30, smi=_smi())
    bytes_ = case.size(2**32, 2**24)
    source = torch.randint(0, 255, (bytes_,), dtype=torch.uint8, device=case.device)
    target = torch.empty_like(source)
    case.note(copy_gb_s=2 * bytes_ / _seconds(lambda: target.copy_(source), case) / 1e9)
    n = case.size(8192, 256)
    a, b = (torch.randn(n, n, device=case.device, dtype=torch.bfloat16) for _ in range(2))
    case.note(matmul_bf16_tflops=2 * n**3 / _seconds(lambda: a @ b, case) / 1e12)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cudnn_tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)


def _smi() -> str | None:
    query = "--query-gpu=name,driver_version,memory.total,memory.used,clocks.sm"
    try:
        found = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip()


def _seconds(work: Callable[[], object], case: Case, times: int = 10) -> float:
    """Median seconds of one call, the device waited for."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    taken = []
    for _ in range(times + 3):
        wait()
        begin = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - begin)
    return sorted(taken[3:])[times // 2]


def preflight(case: Case) -> None:
    """The command `preflight` for a demo, on this machine."""
    words = ["preflight", str(processes.TASKS["text"]), "--set", f"engine.device={case.device}"]
    running = processes.start(["adrpo_scale", *words], case.folder / "output.txt")
    code = running.wait(case.seconds - 5)
    case.note(seconds=running.seconds, output=running.tail)
    case.check("preflight ends with 0", code == 0, code)


def pytest(case: Case) -> None:
    """tests/gpu as pytest runs it, as far as its time goes. What the other steps measured comes
    last."""
    first = ["tests/gpu/test_plan_memory.py::test_the_peak_of_sd3_lora[false]"]
    first += ["tests/gpu/test_qwen3.py", "tests/gpu/test_sd3_medium.py", "tests/gpu"]
    words = ["pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider", *first]
    running = processes.start(words, case.folder / "output.txt")
    code = running.wait(case.seconds - 5)
    lines = {m[1]: m[2] for m in re.finditer(r"^(\S+) (PASSED|FAILED|ERROR)\b", running.text, re.M)}
    skipped = len(re.findall(r" SKIPPED\b", running.text))
    case.note(tests=lines, skipped=skipped, is_complete=code is not None, python=sys.executable)
    if not lines and skipped:
        raise NotRun(f"{skipped} tests skipped: they need a CUDA device")
    case.note(output=running.tail)
    case.check("none of the tests that ended failed", {*lines.values()} == {"PASSED"}, lines)
