"""`lives/NN.json`: the code, versions and hardware of each start of a run, and its outcome.

A start is one process life of a run; the folder on disk keeps its first name. The records are for
people and for the check of stalled starts. A record that cannot be written is a warning, not an
error.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import read_object, section_of
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.secrets import masked

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
_LISTED = 4  # hosts listed in one line


def environment() -> dict[str, Any]:
    """The environment of this process: host, code, versions, driver and GPU.

    gpu: None where CUDA is not in use; asking would start CUDA and take memory on a GPU.
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

    None where `root` is not a checkout of this project: site-packages may lie inside the checkout
    of another one.
    """
    if not (root / ".git").exists() or not _is_this_project(root / "pyproject.toml"):
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        edited = _git(root, "--no-optional-locks", "status", "--porcelain", "--", NAME)
    except (OSError, subprocess.SubprocessError):
        return None  # git is missing, or refuses a checkout of another owner
    return head + ("+changes" if edited else "")


def _is_this_project(file: Path) -> bool:
    try:
        return tomllib.loads(file.read_text())["project"]["name"] == NAME
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _git(root: Path, *arguments: str) -> str:
    # GIT_DIR and similar variables, set inside a hook, would lead to another repository.
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
    """Version of the NVIDIA kernel module; None without one."""
    try:
        found = re.search(r"\b\d+\.\d+(?:\.\d+)*\b", file.read_text())
    except OSError:
        return None
    return found[0] if found else None


class StartRecord:
    """The record of this start, on rank 0 only. path: None where the file could not be created."""

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
        """Writes the record with the next number in `run/lives`.

        environments: of all ranks, in rank order. resumed_from: iteration of the checkpoint.
        changed_settings: one line each. found: work of the previous start that is repeated, from
        `folder.left_behind`.
        """
        first = environments[0]
        content = {
            "began": _now(),
            "launcher": launcher,
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "restart_count": natural(os.environ.get("SLURM_RESTART_COUNT", "")) or 0,
            "world_size": len(environments),
            "hosts": len({e["host"] for e in environments}),
            "gpus": dict(Counter(e["gpu"] for e in environments if e["gpu"])),
            **{name: first[name] for name in ("commit", "versions", "cuda", "driver")},
            "disagreements": disagreements(environments),
            "resumed_from": resumed_from,
            "found": dict(found) if found else None,
            "changed_settings": list(changed_settings),
            "command": command_line(sys.argv),
        }
        try:
            return cls(_write_next(run / "lives", content), content)
        except OSError as error:
            log.warning("this start's record cannot be written in %s: %s", run / "lives", error)
            return cls(None, content)

    def end(
        self, outcome: str, exit_code: int, iteration: int, seconds_from_signal: float | None
    ) -> None:
        """Adds the outcome. A record without one is of a start that was killed or still runs.

        seconds_from_signal: from the signal to the stop; None without a signal.
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
        except OSError as error:  # must not hide the error that ended the start
            log.warning("the end of this start cannot be written to %s: %s", self.path, error)


def _write_next(folder: Path, content: dict[str, Any]) -> Path:
    """Creates the file with the next number, complete at once, and never replaces another."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"new-{socket.gethostname()}-{os.getpid()}"
    replace_json(whole, content)
    try:
        while True:
            number = max((int(path.stem) for path in records(folder.parent)), default=0) + 1
            try:
                return _link(whole, folder / f"{number:02d}.json")
            except FileExistsError:
                continue  # another process, which has lost the folder's lock, took the number
    finally:
        whole.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> Path:
    """Links `source` as `path`, or renames it where the filesystem has no links.

    Raises FileExistsError where `path` exists.
    """
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
    """The newest readable record: before `begin`, that of the previous start. None without one."""
    return next((found for path in reversed(records(run)) if (found := read_object(path))), None)


def command_line(argv: Sequence[str]) -> str | None:
    """The command of this process, as a shell takes it, without what started several processes and
    with secrets masked. None where Python code has called the package."""
    first = Path(argv[0]) if argv else Path()
    ours = first.name == "adrpo-scale" or (first.name, first.parent.name) == ("__main__.py", NAME)
    return masked(shlex.join(["adrpo-scale", *argv[1:]])) if ours else None


def last_command(run: Path) -> str | None:
    """The command of the run's newest start; None in a run of before, and where none is known."""
    command = (previous_start(run) or {}).get("command")
    return command if isinstance(command, str) else None


def stalled_starts(run: Path, job: str | None, iteration: int | None) -> list[dict[str, Any]]:
    """The last consecutive starts of Slurm's job `job` that ended by accident (killed, hung) and
    left no checkpoint newer than that of `iteration`, with which they began."""
    found: list[dict[str, Any]] = []
    for path in reversed(records(run)):
        record = read_object(path)
        if job is None or record is None or record.get("job_id") != job:
            break
        if record.get("resumed_from") != iteration:
            break  # that start left a newer checkpoint
        outcome = str(record.get("outcome", "killed"))
        if not outcome.startswith(("done", "stopped by")):  # these are no accidents
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
    """The facts (code, versions, drivers) that differ between ranks, one line each, the rarest
    value first: `torch: 2.11.0 on a6000-07, 2.15.0 on a6000-03, a6000-04`."""
    told = [(e["host"], _facts(e)) for e in environments]
    lines = []
    for name in dict.fromkeys(name for _, facts in told for name in facts):
        hosts: dict[str, dict[str, None]] = {}
        for host, facts in told:
            if name == "commit" and name not in facts:
                continue  # some nodes may have no git
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
    """The facts to compare, by the name that is shown; unknown ones are left out."""
    facts = {"commit": _short_commit(record.get("commit"))}
    facts |= section_of(record, "versions")
    facts |= {name: record.get(name) for name in ("cuda", "driver", "hosts", "world_size")}
    gpus = section_of(record, "gpus")
    facts["gpus"] = ", ".join(f"{count} × {name}" for name, count in sorted(gpus.items()))
    return {name: str(value) for name, value in facts.items() if value}


def _short_commit(commit: Any) -> str | None:
    """The first 12 digits, with `+changes` where the code was edited."""
    if not isinstance(commit, str) or not commit:
        return None
    digits, _, edited = commit.partition("+")
    return digits[:12] + (f"+{edited}" if edited else "")
