"""The GPUs that `plan` knows: rates of the vendors' data sheets, and assumptions.

`efficiency` and `overhead` are assumptions; the measurements of a trial (`train --trial`) correct
them.
"""

from __future__ import annotations

import difflib

from adrpo_scale.cluster.plan.base import GIB, Gpu, Hardware
from adrpo_scale.core.errors import ConfigError

# Seconds: Python, dispatch and launch of one operator outside of CUDA graphs. Measured: 19 µs on a
# Xeon beside an H100 (Qwen3-0.6B, 1,647 kernels a token in 31.4 ms).
OVERHEAD = 20e-6
GIGABIT = 1e9 / 8
CPU = "cpu"  # one process on one core: for trials on CPUs


def _gpu(
    name: str, gib: float, bf16: float, fp32: float, hbm_gb: float, link_gb: float, share: float
) -> Gpu:
    """gib: total memory that torch reports. bf16, fp32: dense TFLOP/s (fp32 without TF32, torch's
    default; float16 has the rate of bfloat16). hbm_gb, link_gb: GB/s; the link's rate is that of
    large collectives. share: the assumed efficiency."""
    flops = {"bfloat16": bf16 * 1e12, "float16": bf16 * 1e12, "float32": fp32 * 1e12}
    return Gpu(name, int(gib * GIB), flops, hbm_gb * 1e9, link_gb * 1e9, share, OVERHEAD)


# A6000 and L40S: PCIe gen 4 x16 without a switch between the GPUs, shared by the node's ring.
GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a6000", 47.5, 154.8, 38.7, 768, 12, 0.40),
        _gpu("l40s", 44.4, 362.0, 91.6, 864, 12, 0.35),
        _gpu("a100-40", 39.4, 312.0, 19.5, 1555, 200, 0.45),
        _gpu("a100-80", 79.2, 312.0, 19.5, 2039, 200, 0.45),
        _gpu("h100", 79.1, 989.0, 67.0, 3350, 350, 0.35),
        _gpu("h200", 139.8, 989.0, 67.0, 4800, 350, 0.35),
        _gpu(CPU, 8.0, 0.02, 0.06, 10, 2, 0.5),
    )
}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name. Raises ConfigError, which lists the known names, for any other."""
    if name.lower() in GPUS:
        return GPUS[name.lower()]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"--gpu {name!r} is not known; {hint}known: {', '.join(GPUS)}")


def gpu_of_device(name: str, total: int | None = None) -> Gpu:
    """The GPU of a name from `torch.cuda.get_device_name()`, e.g. "NVIDIA RTX A6000"."""
    text = name.lower().replace("-", " ")
    if "a100" in text:
        return GPUS["a100-40" if "40gb" in text else "a100-80"]
    for known in ("a6000", "l40s", "h200", "h100"):
        if known in text:
            return GPUS[known]
    raise ConfigError(
        f"the trial ran on {name!r}, whose rates plan does not know; known: {', '.join(GPUS)}; "
        "repeat the trial on one of these, or plan without --trial"
    )


def build_hardware(gpu: str, nodes: int, gpus_per_node: int, network_gbit: float) -> Hardware:
    """Raises ConfigError for an unknown GPU, and for numbers below 1 or a network of 0."""
    for option, value in (("--nodes", nodes), ("--gpus-per-node", gpus_per_node)):
        if value < 1:
            raise ConfigError(f"{option} {value}: expected 1 or more")
    if network_gbit <= 0:
        raise ConfigError(f"--network-gbit {network_gbit:g}: expected above 0, e.g. 100")
    return Hardware(find_gpu(gpu), nodes, gpus_per_node, network_gbit * GIGABIT)
