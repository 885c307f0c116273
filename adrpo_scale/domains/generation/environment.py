"""The environment of a process that draws rollouts: this rank's GPU, and no trace of a launcher.

With RANK and WORLD_SIZE a library would join the trainer's process group, or build one over all
ranks of the job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

_LAUNCHERS = ("SLURM_", "TORCHELASTIC_", "PMI_", "PMIX_", "OMPI_", "GLOO_", "ADRPO_LAUNCHER")
_RANKS = {"RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"}
_RANKS |= {f"{of}_{what}" for of in ("LOCAL", "GROUP", "ROLE") for what in ("RANK", "WORLD_SIZE")}
_RANKS |= {"ROLE_NAME"}
# The trainer's choice of an allocator: sleeping GPU memory needs another one.
_ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"}
_OTHER_PYTHON = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}


def clean_environment(
    device: int | None, same_python: bool, env: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Variables of the process. device: number of this rank's GPU, by the trainer's count; None: it
    gets none. same_python: whether it runs by the trainer's interpreter."""
    dropped = _RANKS | _ALLOCATOR | (set() if same_python else _OTHER_PYTHON)
    kept = {
        name: value
        for name, value in env.items()
        if name not in dropped and not name.startswith(_LAUNCHERS)
    }
    return kept | {"CUDA_VISIBLE_DEVICES": "" if device is None else visible_device(device, env)}


def visible_device(device: int, env: Mapping[str, str] = os.environ) -> str:
    """The name of a GPU in CUDA_VISIBLE_DEVICES, by its number among those that this process
    sees."""
    stated = env.get("CUDA_VISIBLE_DEVICES")
    return str(device) if stated is None else stated.split(",")[device].strip()
