"""This machine beside its GPUs: Python, versions, network, folders, limits, variables."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.preflight.base import Check, Finding
from adrpo_scale.core.caches import cache_root
from adrpo_scale.core.disk_space import disk_space, size_text
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.host_memory import free_host_memory
from adrpo_scale.core.secrets import masked

SHOWN = re.compile(r"(ADRPO|NCCL|GLOO|CUDA|OMP|MKL|PYTORCH|TORCH|HF|TRANSFORMERS|SLURM)_\w+")
HIDDEN = re.compile(r".*(KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL)")
LOW_BYTES, LOW_FILES = 5_000_000_000, 10_000  # below, a checkpoint or a cache soon fails
_NOT_HERE = "not installed"


def check_python() -> Check:
    """The interpreter and the system."""
    memory = free_host_memory()
    parts = [
        f"{platform.python_version()} at {sys.executable}",
        f"{platform.system()} {platform.release()}, {platform.machine()}",
        f"{os.cpu_count()} CPUs, {size_text(memory) if memory is not None else '?'} of memory free",
    ]
    return Check("python", "; ".join(parts))


def check_versions(environment: Mapping[str, Any]) -> Check:
    """environment: of `starts.environment`."""
    versions = environment["versions"]
    stated = ", ".join(f"{name} {version or _NOT_HERE}" for name, version in versions.items())
    commit = environment["commit"]
    missing = [name for name, version in versions.items() if version is None]
    findings = [
        Finding(
            "fault",
            f"{', '.join(missing)} {_NOT_HERE}",
            "every package of pyproject.toml",
            "install the project again: pip install --constraint constraints.txt --editable .",
        )
    ]
    text = stated + (f"; commit {commit}" if commit else "; not a checkout")
    return Check("versions", text, tuple(findings if missing else ()))


def check_network(env: Mapping[str, str] = os.environ) -> Check:
    """Interfaces that are up, and whether the variables name one of them."""
    there = dict(interfaces())
    stated = ", ".join(f"{name} {state}" for name, state in there.items()) or "none"
    findings = []
    for variable in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        asked = env.get(variable, "")
        names = [part.lstrip("=") for part in asked.split(",") if not asked.startswith("^")]
        wanted = [name for name in names if name]
        if wanted and not any(known.startswith(name) for name in wanted for known in there):
            findings.append(
                Finding(
                    "fault",
                    f"{variable}={asked}",
                    f"an interface of this machine: {stated}",
                    f"set {variable} to one of them, or unset it",
                )
            )
    adapters = Path("/sys/class/infiniband")
    names = sorted(path.name for path in adapters.iterdir()) if adapters.is_dir() else []
    return Check("network", f"{stated}; InfiniBand {', '.join(names) or 'none'}", tuple(findings))


def interfaces() -> Iterator[tuple[str, str]]:
    """(name, "up at 100 Gb/s") of each network interface but the loopback."""
    for _, name in socket.if_nameindex():
        if name == "lo":
            continue
        folder, speed = Path("/sys/class/net") / name, ""
        with suppress(OSError, ValueError):  # a virtual interface states no speed
            megabits = int((folder / "speed").read_text())
            speed = f" at {megabits / 1000:g} Gb/s" if megabits > 0 else ""
        state = "?"
        with suppress(OSError):
            state = (folder / "operstate").read_text().strip()
        yield name, f"{state}{speed}"


# --- folders --------------------------------------------------------------------------------------


def folders(env: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """The folders that runs use, by what they are for."""
    found = {
        "current": Path.cwd(),
        "runs": Path(env.get("ADRPO_RUNS", "runs")).absolute(),
        "hub": Path(env.get("HF_HOME", "~/.cache/huggingface")).expanduser(),
        "scratch": Path(tempfile.gettempdir()),
    }
    with suppress(AdrpoError):  # its own message is that of `check_folder`
        found["cache"] = cache_root()
    return found


def check_folder(name: str, folder: Path) -> Check:
    """A folder, or its nearest parent that exists, has room and can be written and linked in: a
    run's lock is a hard link."""
    there = next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))
    stated = f"{folder}, {filesystem_of(there)}"
    try:
        why, space = _trial(there), disk_space(there)
    except OSError as error:
        finding = Finding("fault", f"{folder}: {error}", "a folder", "choose another one")
        return Check(name, stated, (finding,))
    files = "" if space.free_files is None else f" and {space.free_files:,} files"
    findings = []
    if why is not None:
        value = f"{there}: {why}"
        remedy = "choose a folder of yours on a filesystem with hard links, e.g. by ADRPO_RUNS"
        findings.append(Finding("fault", value, "a file can be written and linked there", remedy))
    is_full = space.free_files is not None and space.free_files < LOW_FILES
    if space.free_bytes < LOW_BYTES or is_full:
        value = f"{there}: {size_text(space.free_bytes)}{files} free"
        findings.append(Finding("warning", value, size_text(LOW_BYTES), "make room, or move it"))
    text = f"{stated}; {size_text(space.free_bytes)}{files} free"
    return Check(name, text, tuple(findings))


def _trial(folder: Path) -> str | None:
    """None where a file can be made, linked and renamed in the folder; otherwise the reason."""
    try:
        with tempfile.TemporaryDirectory(prefix=".adrpo-doctor-", dir=folder) as made:
            first, second = Path(made) / "a", Path(made) / "b"
            first.write_bytes(b"doctor")
            os.link(first, second)
            os.replace(second, Path(made) / "c")
    except OSError as error:
        return error.strerror or repr(error)
    return None


def filesystem_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the filesystem that a folder is on, e.g. `nfs4`; "?" where that is unknown."""
    best, kind = "", "?"
    with suppress(OSError):
        for line in mounts.read_text().splitlines():
            _, point, name, *_ = line.split(" ")
            point = point.encode().decode("unicode_escape")
            inside = folder == Path(point) or Path(point) in folder.parents
            if inside and len(point) >= len(best):
                best, kind = point, name
    return kind


# --- variables ------------------------------------------------------------------------------------


def check_variables(env: Mapping[str, str] = os.environ) -> Check:
    """Variables that change a run. A key is "set", and never shown."""
    lines = []
    for name in sorted(env):
        if SHOWN.fullmatch(name):
            value = "set" if HIDDEN.fullmatch(name) else masked(env[name])
            lines.append(f"{name}={value}")
    return Check("variables", " ".join(lines) or "none that changes a run")


def check_offline(env: Mapping[str, str] = os.environ) -> Check:
    """Whether the hub is asked."""
    flags = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    on = " and ".join(name for name in flags if env.get(name, "0") not in ("", "0"))
    has_token = any(env.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    state = f"{on} set: models come from the cache alone" if on else "no flag set: the hub is asked"
    return Check("offline", f"{state}; token {'set' if has_token else 'not set'}")
