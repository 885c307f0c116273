"""A checkpoint: the settings of saving, and the manifest that makes a folder a checkpoint.

    step-000120/
      manifest.json            written last; a folder without it is never read
      rank-000.safetensors     the ranges that rank 0 stored, flat, float32
      rank-001.safetensors     ...

A tensor is stored as flat ranges [start, stop) of its row-major flattened form, under the key
`<set>/<name>/<start>-<stop>`. Sets: `policy` (trained parameters), `exp_avg` and `exp_avg_sq`
(Adam's moments), `ema`. Every element is stored exactly once, under any engine and number of ranks;
a reader assembles any other ranges from them. Everything that is not a tensor is in the manifest's
`document`. The base model's frozen weights are not stored, only their identity.

`manifest.json` carries the SHA-256 and size of every file, and of itself (over its canonical JSON
without the field `sha256`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from adrpo_scale.checkpoint.form import check_form
from adrpo_scale.core.bounds import COUNT, WAIT
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.json_files import parse_object
from adrpo_scale.core.settings import Effect, Section, setting
from adrpo_scale.core.tensor_files import FileFacts

FORMAT = "adrpo_scale checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
_FOLDER = re.compile(r"step-(\d{6,})")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class CheckpointConfig(Section):
    """When to save, what to keep, and how long a stop may take."""

    EFFECT: ClassVar[Effect] = "none"

    every_iterations: int = setting(
        0, "iterations between checkpoints; 0: by time alone", ge=0, le=COUNT
    )
    every_minutes: float = setting(
        15.0, "minutes between checkpoints; 0: never by time", ge=0, le=COUNT
    )
    background: bool = setting(True, "write while the run trains on")
    on_failure: Literal["continue", "stop"] = setting(
        "continue", "when a save fails: train on with the previous checkpoint, or stop"
    )
    keep_last: int = setting(2, "newest checkpoints to keep", ge=1, le=COUNT)
    keep_every: int = setting(
        0, "also save, and keep, every M-th iteration; 0: none", ge=0, le=COUNT
    )
    keep_best: int = setting(
        0, "also save at evaluations, and keep the best k; 0: none", ge=0, le=COUNT
    )
    best_metric: str = setting("reward", "metric of eval.jsonl by which checkpoints are ranked")
    best_split: str = setting("held_out", "split of eval.jsonl by which checkpoints are ranked")
    best_mode: Literal["max", "min"] = setting("max", "whether a higher or lower value is better")
    keep_trajectory: int = setting(
        0,
        "save weights without optimizer state every M iterations, for good; 0: never",
        ge=0,
        le=COUNT,
    )
    quota_command: str | None = setting(
        None, "shell command that prints free bytes (and free files), where a quota limits"
    )
    grace_seconds: float = setting(
        120.0,
        "seconds from Slurm's signal to its kill: sbatch --signal=USR1@SECONDS",
        gt=0,
        le=WAIT,
    )
    lock_expiry_seconds: float = setting(
        120.0,
        "a run folder's owner on another machine counts as dead after this silence",
        ge=5,  # heartbeats are four times as frequent, and file servers show them seconds later
        le=WAIT,
    )

    @model_validator(mode="after")
    def _some_cadence(self) -> CheckpointConfig:
        if self.every_iterations == 0 and self.every_minutes == 0:
            raise ValueError(
                "every_iterations = 0 and every_minutes = 0: nothing would be saved before the "
                "end; set one of them"
            )
        return self


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a flattened tensor, and the file that holds them."""

    start: int
    stop: int
    file: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's pieces. shape: of the whole tensor. pieces: sorted, without gap or overlap."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Sets = Mapping[str, Mapping[str, StoredTensor]]
"""Set → tensor name → its stored pieces."""


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`. kind: `full` resumes, `weights` has no optimizer state.
    document: counters, config, base model, ..."""

    kind: str
    iteration: int
    files: tuple[FileFacts, ...]
    sets: Sets
    document: Mapping[str, Any]

    def to_text(self) -> str:
        """The text of `manifest.json`, with its own hash."""
        number = {file.name: k for k, file in enumerate(self.files)}
        sets = {
            set_name: {
                name: [list(t.shape), [[p.start, p.stop, number[p.file]] for p in t.pieces]]
                for name, t in tensors.items()
            }
            for set_name, tensors in self.sets.items()
        }
        body = {
            "format": FORMAT,
            "version": VERSION,
            "kind": self.kind,
            "iteration": self.iteration,
            "document": self.document,
            "files": [[file.name, file.bytes, file.sha256] for file in self.files],
            "sets": sets,
        }
        return json.dumps({"sha256": _digest(body), **body}, allow_nan=False) + "\n"


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse_manifest(text: str, where: Path) -> Manifest:
    """The manifest in `text`; where: its path, for errors.

    Raises CheckpointError where it is damaged, of another form or another iteration than its
    folder's, names files outside its folder, or does not cover every element of every tensor
    exactly once; OtherVersionError for another format version.
    """
    try:
        body = parse_object(text, strict=True)
    except ValueError as error:
        raise CheckpointError(f"{where} is damaged: {error}; it is not readable JSON") from error
    claimed, version = body.pop("sha256", None), body.get("version")
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{where} is not the manifest of an {FORMAT}")
    if type(version) is int and version != VERSION:
        raise OtherVersionError(
            f"{where} has format version {version}, this package reads {VERSION}; "
            "install the version of adrpo_scale that wrote it"
        )
    try:
        found = _digest(body)
    except RecursionError:
        raise CheckpointError(f"{where} is damaged: it is nested too deeply") from None
    if claimed != found:
        raise CheckpointError(f"{where} is damaged: its contents do not have the hash it states")
    try:
        check_form(body)
        files = tuple(FileFacts(*entry) for entry in body["files"])
        sets = {
            set_name: {name: _stored(entry, files) for name, entry in tensors.items()}
            for set_name, tensors in body["sets"].items()
        }
    except (ValueError, IndexError) as error:
        raise CheckpointError(
            f"{where} lacks a field of a manifest, or has one of another form: {error}"
        ) from error
    check_names([file.name for file in files], where)
    manifest = Manifest(body["kind"], body["iteration"], files, sets, body["document"])
    _check_place(manifest, where)
    check_tiling(manifest.sets, where)
    return manifest


def _check_place(manifest: Manifest, where: Path) -> None:
    """Raises CheckpointError in the folder of another iteration: renamed, or copied over it."""
    stated = _FOLDER.fullmatch(where.parent.name)
    if stated and int(stated[1]) != manifest.iteration:
        raise CheckpointError(
            f"{where} is of iteration {manifest.iteration}, and its folder is that of another; "
            f"rename the folder to {folder_name(manifest.iteration)}, or remove it"
        )


class OtherVersionError(CheckpointError):
    """A checkpoint is of another version of the format, which this package does not read."""


def _stored(entry: Sequence[Any], files: Sequence[FileFacts]) -> StoredTensor:
    shape, pieces = entry
    found = (Piece(start, stop, files[number].name) for start, stop, number in pieces)
    return StoredTensor(tuple(shape), tuple(found))


def check_names(names: Iterable[str], where: Path) -> None:
    """Raises CheckpointError unless every name is that of a file in the checkpoint's own folder."""
    for name in names:
        if not _FILE_NAME.fullmatch(name):
            raise CheckpointError(
                f"{where} names the file {name!r}, which is not a plain name in its own folder; "
                "such a checkpoint is not read"
            )


def check_tiling(sets: Sets, where: Path) -> None:
    """Raises CheckpointError unless each tensor's pieces cover it without gap or overlap."""
    for set_name, tensors in sets.items():
        for name, tensor in tensors.items():
            end = 0
            for piece in tensor.pieces:
                if piece.start != end or piece.stop <= piece.start:
                    word = "overlap" if piece.start < end else "leave a gap"
                    raise CheckpointError(
                        f"{where}: ranges of {set_name}/{name} {word} at element {end} "
                        f"(next range {piece.start}-{piece.stop})"
                    )
                end = piece.stop
            if end != math.prod(tensor.shape):
                raise CheckpointError(
                    f"{where}: ranges of {set_name}/{name} end at element {end}, the shape "
                    f"{list(tensor.shape)} has {math.prod(tensor.shape)}"
                )


def key_of(set_name: str, name: str, piece: Piece) -> str:
    """The name of a piece inside its safetensors file."""
    return f"{set_name}/{name}/{piece.start}-{piece.stop}"


def folder_name(iteration: int) -> str:
    """`step-000120` for iteration 120."""
    return f"step-{iteration:06d}"
