"""The survey of this node: its view of the run folder, models, versions, GPUs and limits.

Local rank 0 surveys its node, every process its own GPU. No model is loaded, and no file stays.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.cluster.preflight.base import Place
from adrpo_scale.cluster.preflight.node import (
    CudaFacts,
    FolderFacts,
    GpuFacts,
    Limits,
    ModelFacts,
    NodeFacts,
    Request,
    Survey,
)
from adrpo_scale.core.caches import cache_root, why_unwritable
from adrpo_scale.core.disk_space import disk_space
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.files import write_new
from adrpo_scale.core.host_memory import free_host_memory
from adrpo_scale.core.numbers import natural
from adrpo_scale.hub.lock import check, damaged, fingerprint
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.starts import driver_version, environment

SEEN_SECONDS = 10.0  # an NFS client may show a folder's state of seconds ago
CONTEXT_BYTES = 2_000_000_000  # more than a CUDA context takes on any GPU
_TOKEN = ".adrpo-preflight-"


def survey(request: Request, place: Place) -> Survey:
    """This process's survey."""
    first = place.local_rank == 0
    deadline = time.monotonic() + SEEN_SECONDS  # of both folders: rank 0 may be gone meanwhile
    node = _node_facts(request, place, deadline) if first else None
    if node is not None and request.caches:
        node = replace(node, cache=cache_facts(request, place, deadline))
    gpu = None if request.device == "cpu" or "gpus" in request.skipped else gpu_facts(place)
    return Survey(place.rank, place.node, place.name, node, gpu)


def _node_facts(request: Request, place: Place, deadline: float) -> NodeFacts:
    def wanted(name: str) -> bool:
        return name not in request.skipped

    needs = list(request.needs)
    return NodeFacts(
        environment=_environment(request, place),
        folder=folder_facts(request, place, deadline) if wanted("folder") else None,
        models=_models(needs) if wanted("models") else None,
        scratch=_scratch() if wanted("scratch") else None,
        memory=free_host_memory() if wanted("memory") else None,
        limits=_limits() if wanted("limits") else None,
        cuda=cuda_facts() if wanted("gpus") and request.device != "cpu" else None,
    )


def _models(needs: Sequence[HubNeed]) -> ModelFacts:
    return ModelFacts(tuple(check(needs)), fingerprint(needs), tuple(damaged(needs)))


def _environment(request: Request, place: Place) -> dict[str, Any]:
    """The environment in a start's record, with the node's name and a hash of its config file."""
    found = environment() | {"host": place.name, "gpu": None}
    return found | {"versions": found["versions"] | {"config file": _file_digest(request.config)}}


def _file_digest(name: str) -> str:
    try:
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()[:12]
    except OSError as error:
        return f"not readable ({error.strerror})"


# ---- the run folder ------------------------------------------------------------------------------


def nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


@contextmanager
def token_in(folder: Path) -> Iterator[str | None]:
    """Yields the name of a new small file, which is removed afterwards; None where writing fails:
    `folder_facts` then reports this node like any other."""
    token = f"{_TOKEN}{os.urandom(8).hex()}"
    try:  # around the writing, too: a stop may come at any line
        yield token if _is_written(folder / token) else None
    finally:
        with suppress(OSError):
            (folder / token).unlink()


def _is_written(path: Path) -> bool:
    try:
        write_new(path, path.name.encode())
    except OSError:
        return False
    return True


def folder_facts(request: Request, place: Place, deadline: float | None = None) -> FolderFacts:
    """Checks that this node sees the file of rank 0, and can write beside it. deadline: time at
    which it must be seen."""
    deadline = time.monotonic() + SEEN_SECONDS if deadline is None else deadline
    folder = Path(request.folder)
    unseen = None if request.token is None else _why_unseen(folder / request.token, deadline)
    own = folder / f"{request.token or _TOKEN}-{place.node}-{os.urandom(8).hex()}"
    try:
        write_new(own, b"")
    except OSError as error:
        return FolderFacts(unseen, _words(error))
    finally:
        with suppress(OSError):
            own.unlink()
    return FolderFacts(unseen, None)


def cache_facts(request: Request, place: Place, deadline: float) -> FolderFacts:
    """This node's view of its cache; another folder than rank 0's has no file of rank 0's."""
    try:
        root = cache_root()
    except AdrpoError as error:
        return FolderFacts(None, str(error))
    place_of_token = replace(request, folder=str(nearest(root)), token=request.cache_token)
    found = folder_facts(place_of_token, place, deadline)
    return FolderFacts(found.unseen, found.unwritable or why_unwritable(root))


def _why_unseen(path: Path, deadline: float) -> str | None:
    """None as soon as the file contains its own name; at the deadline the reason."""
    while True:
        try:
            if path.read_text() == path.name:
                return None
            why = "the file that rank 0 wrote is there without its content"
        except FileNotFoundError:
            there = path.parent.is_dir()
            why = "the file that rank 0 wrote is not in it" if there else "there is no such folder"
        except OSError as error:
            why = _words(error)
        if time.monotonic() > deadline:
            return why
        time.sleep(0.2)
        with suppress(OSError):
            os.listdir(path.parent)  # makes an NFS client ask its server again


def _words(error: OSError) -> str:
    return error.strerror or repr(error)


# ---- limits --------------------------------------------------------------------------------------


def _scratch() -> tuple[str, int]:
    folder = Path(tempfile.gettempdir())
    return str(folder), disk_space(folder).free_bytes


def _limits() -> Limits:
    shared = Path("/dev/shm")
    adapters = Path("/sys/class/infiniband")
    return Limits(
        shared_memory=disk_space(shared).free_bytes if shared.is_dir() else None,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_memory=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if _is_linux() else -1,
        infiniband=adapters.is_dir() and any(adapters.iterdir()),
    )


def _is_linux() -> bool:
    return platform.system() == "Linux"


# ---- GPUs ----------------------------------------------------------------------------------------


def cuda_facts(env: Mapping[str, str] = os.environ) -> CudaFacts:
    """CUDA on this node as torch sees it; no context is created on any GPU."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")  # torch reports an old driver only in a warning
        available = torch.cuda.is_available()
        count = torch.cuda.device_count() if available else 0
    why = "; ".join(str(warning.message).splitlines()[0] for warning in caught)
    return CudaFacts(
        available=available,
        count=count,
        why="" if available else why,
        wheel=torch.version.cuda,
        driver=driver_version(),
        granted=natural(env.get("SLURM_GPUS_ON_NODE", "")) or 0,
    )


def gpu_facts(place: Place) -> GpuFacts | None:
    """The facts of this process's GPU; None without CUDA. A small product is computed on it: a GPU
    that has fallen off its bus is still counted and fails only in use."""
    if not torch.cuda.is_available():
        return None
    index = place.local_rank
    if index >= torch.cuda.device_count():
        return None  # the node's `count` shows it
    try:
        torch.cuda.set_device(index)
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(256, 256, device="cuda")
        if not bool((ones @ ones == 256).all()):
            return GpuFacts(index, error="a product of two matrices of ones is wrong")
        properties = torch.cuda.get_device_properties(index)
    except RuntimeError as error:
        return GpuFacts(index, error=str(error).splitlines()[0])
    used = total - free
    users = _users(str(properties.uuid)) if used > CONTEXT_BYTES else ()
    return GpuFacts(index, properties.name, total, used, users)


def _users(uuid: str) -> tuple[str, ...]:
    """Other processes on a GPU, e.g. `pid 4711 python 9000 MiB`; empty without `nvidia-smi`."""
    asked = "--query-compute-apps=pid,process_name,used_memory"
    command = ["nvidia-smi", asked, "--format=csv,noheader", f"--id=GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    others = [row for row in rows if len(row) == 3 and row[0] != str(os.getpid())]
    return tuple(f"pid {pid} {Path(name).name} {memory}" for pid, name, memory in others)
