"""The command `inspect`: the content of a checkpoint, and a check of every hash."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from adrpo_scale.checkpoint.base import MANIFEST, OtherVersionError
from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import CHECKPOINTS, TRAJECTORY, committed
from adrpo_scale.core.console import console
from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.numbers import natural
from adrpo_scale.core.paths import usual_path

_FLOAT32 = 4  # bytes of an element


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect`. facts: everything that `--json` prints, faults included."""

    facts: Mapping[str, Any]

    @property
    def is_whole(self) -> bool:
        return not self.facts["faults"]


def inspect(name: str) -> Inspection:
    """Reads and hashes the checkpoint that RUN (its newest), RUN@iteration or a folder names.

    Raises CheckpointError where there is none, OtherVersionError for another format version.
    """
    others = _others(usual_path(name))
    try:
        reader = open_checkpoint(name)
    except OtherVersionError:
        raise
    except CheckpointError as error:
        if not _is_there(name):
            raise
        return Inspection({"name": name, "others": others, "faults": [str(error)], "whole": False})
    faults = _faults(reader)
    facts = _facts(reader) | {"others": others, "faults": faults, "whole": not faults}
    return Inspection({"name": name} | facts)


def _faults(reader: Reader) -> list[str]:
    try:
        return list(reader.faults())
    except OSError as error:  # the disk does not say
        return [f"{reader.folder} cannot be read: {error}"]


def _is_there(name: str) -> bool:
    """Whether the name leads to a manifest, even a damaged one."""
    run, _, iteration = name.rpartition("@")
    folder = usual_path(name)
    number = natural(iteration)
    if not folder.exists() and number is not None:
        folder = usual_path(run)
        return any(number in committed(folder / sub) for sub in (CHECKPOINTS, TRAJECTORY))
    return (folder / MANIFEST).exists() or bool(_others(folder))


def _others(run: Path) -> list[dict[str, Any]]:
    """Every committed checkpoint of a run, oldest first; [] for any other folder."""
    return [
        {"folder": f"{sub}/{folder.name}", "iteration": iteration, "bytes": _bytes(folder)}
        for sub in (CHECKPOINTS, TRAJECTORY)
        for iteration, folder in sorted(committed(run / sub).items())
    ]


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _facts(reader: Reader) -> dict[str, Any]:
    manifest = reader.manifest
    document = manifest.document
    sets = {}
    for part, tensors in manifest.sets.items():
        elements = sum(math.prod(tensor.shape) for tensor in tensors.values())
        count = {"tensors": len(tensors), "elements": elements, "bytes": _FLOAT32 * elements}
        sets[part] = count
    keys = ("run", "identity", "package", "world_size", "base", "lora", "origin", "counters")
    return {
        "folder": str(reader.folder),
        "kind": manifest.kind,
        "iteration": manifest.iteration,
        "bytes": sum(file.bytes for file in manifest.files),
        **{key: document[key] for key in keys},
        "algorithm": document["config"]["algorithm"]["name"],
        "seed": document["config"]["seed"],
        "rewards": document["rewards"],
        "sets": sets,
        "files": [
            {"name": file.name, "bytes": file.bytes, "sha256": file.sha256}
            for file in manifest.files
        ],
    }


def show(inspection: Inspection) -> None:
    """Prints the inspection as text."""
    facts = inspection.facts
    if "folder" in facts:
        _show_checkpoint(facts)
    if facts["others"]:
        known = ", ".join(
            f"{other['folder']} ({size_text(other['bytes'])})" for other in facts["others"]
        )
        _print(f"committed: {known}")
    for fault in facts["faults"]:
        _print(f"broken: {fault}")
    if inspection.is_whole:
        _print(f"every hash of {len(facts['files'])} files and the manifest holds")


def _show_checkpoint(facts: Mapping[str, Any]) -> None:
    _print(f"checkpoint: {facts['folder']}")
    what = "resumable" if facts["kind"] == "full" else "weights alone"
    _print(
        f"iteration {facts['iteration']} of run {facts['run']} ({what}): {facts['algorithm']}, "
        f"seed {facts['seed']}, {facts['world_size']} processes, adrpo_scale {facts['package']}"
    )
    base, lora = facts["base"], facts["lora"]
    revision = f" at {base['revision']}" if base["revision"] else ""
    _print(f"base model: {base['model']}{revision}, sha256 {base['sha256'][:12]}…")
    trained = f"LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}" if lora else "all parameters"
    _print(f"trained: {trained}")
    if facts["origin"]:
        origin = facts["origin"]
        _print(f"started from: iteration {origin['iteration']} of {origin['run']}")
    table = Table("set", "tensors", "elements", "size")
    for name, part in facts["sets"].items():
        size = size_text(part["bytes"])
        table.add_row(name, str(part["tensors"]), f"{part['elements']:,}", size)
    console.print(table)
    for name, reward in facts["rewards"].items():
        _print(f"reward {name}: mean {reward['mean']:.4g} of {reward['count']:,} samples")


def _print(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)
