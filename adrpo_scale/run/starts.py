"""`lives/NN.json`: on which code, versions and hardware each start of a run ran, and its end.

A start is one process life of a run; the folder on disk keeps its first name.

The records are for people. Nothing that trains reads them, and a record that cannot be written is
a warning, not the end of a run.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import re
import socket
import subprocess
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.files import replace_json

log = logging.getLogger(__name__)

NAME = "adrpo_scale"
PACKAGES = (
    NAME,
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "safetensors",
    "numpy",
)
_LISTED = 4  # hosts in one line


def environment() -> dict[str, Any]:
    """Of this process: host, code, versions, driver, and the GPU it computes on.

    gpu: None where CUDA is not in use; asking would start it, and take memory on a GPU that a
    process on CPU does not need.
    """
    return {
        "host": socket.gethostname(),
        "commit": code_commit(Path(__file__).resolve().parents[2]),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_commit(root: Path) -> str | None:
    """Commit of the checkout at `root`, with `+changes` where the package was edited.

    None where `root` is no checkout of this project: an environment's site-packages may lie inside
    the checkout of something else, whose commit would say nothing.
    """
    if not (root / ".git").exists() or not _is_this_project(root / "pyproject.toml"):
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        edited = _git(root, "--no-optional-locks", "status", "--porcelain", "--", NAME)
    except (OSError, subprocess.SubprocessError):
        return None  # no git here, or the checkout belongs to somebody it does not trust
    return head + ("+changes" if edited else "")


def _is_this_project(file: Path) -> bool:
    try:
        return tomllib.loads(file.read_text())["project"]["name"] == NAME
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _git(root: Path, *arguments: str) -> str:
    # GIT_DIR and its like, as a hook leaves them, would lead to another repository.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
        env=env,
    )
    return done.stdout.strip()


def driver_version(file: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Of the NVIDIA kernel module; None without one."""
    try:
        found = re.search(r"\b\d+\.\d+(?:\.\d+)*\b", file.read_text())
    except OSError:
        return None
    return found[0] if found else None


class StartRecord:
    """The record of this start, on rank 0 alone. path: None where it could not be made."""

    def __init__(self, path: Path | None, content: dict[str, Any]) -> None:
        self.path, self.content = path, content

    @classmethod
    def begin(
        cls,
        run: Path,
        environments: Sequence[Mapping[str, Any]],
        *,
        launcher: str,
        resumed_from: int | None,
        changed_settings: Sequence[str],
        found: Mapping[str, Any] | None = None,
    ) -> StartRecord:
        """Writes the next number in `run/lives`. environments: of every rank, in rank order.
        changed_settings: one line each. found: work of the start before that is done again, as
        `folder.left_behind` gives it."""
        first = environments[0]
        content = {
            "began": _now(),
            "launcher": launcher,
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            "world_size": len(environments),
            "hosts": len({e["host"] for e in environments}),
            "gpus": dict(Counter(e["gpu"] for e in environments if e["gpu"])),
            **{name: first[name] for name in ("commit", "versions", "cuda", "driver")},
            "disagreements": disagreements(environments),
            "resumed_from": resumed_from,
            "found": dict(found) if found else None,
            "changed_settings": list(changed_settings),
        }
        try:
            return cls(_write_next(run / "lives", content), content)
        except OSError as error:
            log.warning("this start's record cannot be written in %s: %s", run / "lives", error)
            return cls(None, content)

    def end(
        self, outcome: str, exit_code: int, iteration: int, seconds_from_signal: float | None
    ) -> None:
        """How it ended. A record without this is of a start that was killed, or still runs.

        seconds_from_signal: how long the stop took; None where no signal came.
        """
        self.content |= {
            "ended": _now(),
            "outcome": outcome,
            "exit_code": exit_code,
            "iteration": iteration,
            "seconds_from_signal": seconds_from_signal,
        }
        try:
            if self.path is not None:
                replace_json(self.path, self.content)
        except OSError as error:  # must not hide the error that the start ended with
            log.warning("the end of this start cannot be written to %s: %s", self.path, error)


def _write_next(folder: Path, content: dict[str, Any]) -> Path:
    """A new file with the next number, whole from the start, never over another."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"new-{socket.gethostname()}-{os.getpid()}"
    replace_json(whole, content)
    try:
        while True:
            number = max((int(path.stem) for path in records(folder.parent)), default=0) + 1
            try:
                return _link(whole, folder / f"{number:02d}.json")
            except FileExistsError:
                continue  # of a process that has lost the folder and does not know it yet
    finally:
        whole.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> Path:
    """Gives `source` a second name that is still free; the only one, where there are no links."""
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        if path.exists():
            raise FileExistsError(path) from None
        os.rename(source, path)
    return path


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def records(run: Path) -> list[Path]:
    """The records of all starts so far, in order."""
    found = (run / "lives").glob("*.json")
    return sorted((path for path in found if path.stem.isdecimal()), key=lambda p: int(p.stem))


def previous_start(run: Path) -> dict[str, Any] | None:
    """The newest record that can be read; before `begin` that of the start before. None: none."""
    return next((found for path in reversed(records(run)) if (found := _read(path))), None)


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None for somebody's edit, or from a damaged disk."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def stalled_starts(run: Path, job: str | None, iteration: int | None) -> list[dict[str, Any]]:
    """The last starts in a row of Slurm's job `job` that ended by accident (killed, or hung) and
    left the checkpoint that they began with, that of `iteration`, as the newest."""
    found: list[dict[str, Any]] = []
    for path in reversed(records(run)):
        record = _read(path)
        if job is None or record is None or record.get("job_id") != job:
            break
        if record.get("resumed_from") != iteration:
            break  # it has left a newer one
        outcome = str(record.get("outcome", "killed"))
        if outcome != "done" and not outcome.startswith("stopped by"):  # asked for by somebody
            found.append(record)
    return found


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two starts, one line each: `torch: 2.11.0 → 2.15.0`."""
    old, new = _facts(before), _facts(now)
    return [
        f"{name}: {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]


def disagreements(environments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Code, versions and drivers in which ranks differ among themselves, one line each, the rarest
    value first: `torch: 2.11.0 on a6000-07, 2.15.0 on a6000-03, a6000-04`. Empty: they agree."""
    told = [(e["host"], _facts(e)) for e in environments]
    lines = []
    for name in dict.fromkeys(name for _, facts in told for name in facts):
        hosts: dict[str, dict[str, None]] = {}
        for host, facts in told:
            if name == "commit" and name not in facts:
                continue  # git is not on every node, or does not answer
            hosts.setdefault(facts.get(name, "none"), {})[host] = None
        if len(hosts) > 1:
            rarest_first = sorted(hosts.items(), key=lambda item: len(item[1]))
            parts = (f"{value} on {_listed(list(names))}" for value, names in rarest_first)
            lines.append(f"{name}: {', '.join(parts)}")
    return lines


def _listed(hosts: list[str]) -> str:
    more = len(hosts) - _LISTED
    return ", ".join(hosts[:_LISTED]) + (f" and {more} more hosts" if more > 0 else "")


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The facts that are compared, by the name they are shown under; unknown ones are left out."""
    facts = {"commit": _short_commit(record.get("commit"))}
    facts |= record.get("versions") or {}
    facts |= {name: record.get(name) for name in ("cuda", "driver", "hosts", "world_size")}
    gpus = record.get("gpus") or {}
    facts["gpus"] = ", ".join(f"{count} × {name}" for name, count in sorted(gpus.items()))
    return {name: str(value) for name, value in facts.items() if value}


def _short_commit(commit: str | None) -> str | None:
    """The first 12 digits, and whether the code was edited."""
    if not commit:
        return None
    digits, _, edited = commit.partition("+")
    return digits[:12] + (f"+{edited}" if edited else "")
