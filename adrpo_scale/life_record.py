"""`lives/NN.json`: on which code, versions and hardware each life of a run ran, and its end."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.files import replace_json

PACKAGES = (
    "adrpo_scale",
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "safetensors",
    "numpy",
)
COMPARED = ("commit", "versions", "cuda", "driver", "gpus", "hosts", "world_size")


def environment() -> dict[str, Any]:
    """Of this process: host, code, versions, driver, GPU."""
    cuda = torch.cuda.is_available()
    return {
        "host": socket.gethostname(),
        "commit": code_commit(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_commit() -> str | None:
    """Commit of this package's checkout, with `+changes` where it was edited; None where it was
    installed from elsewhere."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or not our folder by its owner: what ran is then not known


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout.strip()


def driver_version() -> str | None:
    """Of the NVIDIA kernel module; None without one."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", path.read_text()) if path.is_file() else None
    return found[1] if found else None


class LifeRecord:
    """The record of this life. On rank 0 alone."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        replace_json(path, content)

    @classmethod
    def begin(
        cls,
        run: Path,
        environments: Sequence[Mapping[str, Any]],
        *,
        launcher: str,
        resumed_from: int | None,
        changed_settings: Sequence[str],
    ) -> LifeRecord:
        """Writes the next number in `run/lives`. environments: of every rank."""
        folder = run / "lives"
        folder.mkdir(exist_ok=True)
        first = environments[0]
        content = {
            "began": _now(),
            "launcher": launcher,
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
            "world_size": len(environments),
            "hosts": len({e["host"] for e in environments}),
            "gpus": dict(Counter(e["gpu"] for e in environments if e["gpu"])),
            **{name: first[name] for name in ("commit", "versions", "cuda", "driver")},
            "resumed_from": resumed_from,
            "changed_settings": list(changed_settings),
        }
        return cls(folder / f"{len(records(run)) + 1:02d}.json", content)

    def end(
        self, outcome: str, exit_code: int, iteration: int, seconds_from_signal: float | None
    ) -> None:
        """How it ended. A life without this was killed."""
        self.content |= {
            "ended": _now(),
            "outcome": outcome,
            "exit_code": exit_code,
            "iteration": iteration,
            "seconds_from_signal": seconds_from_signal,
        }
        replace_json(self.path, self.content)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def records(run: Path) -> list[Path]:
    """The records of all lives so far, in order."""
    found = (run / "lives").glob("*.json")
    return sorted((path for path in found if path.stem.isdigit()), key=lambda path: int(path.stem))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different between two lives, one line each: `torch: 2.11.0 → 2.15.0`."""
    old, new = _flat(before), _flat(now)
    return [
        f"{name}: {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: record.get(name) for name in COMPARED}
    return {**(facts.pop("versions") or {}), **facts}


def disagreements(environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where ranks run other code, versions or drivers than rank 0, one line a host."""
    found: dict[str, None] = {}
    for rank, one in enumerate(environments):
        for line in changes(environments[0], one):
            found.setdefault(f"rank {rank} on {one['host']} has another {line}")
    return list(found)
