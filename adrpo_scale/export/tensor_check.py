"""Compares the tensors of an export, one by one, with its model's class: a part of `load_check.py`,
which loads this file by its path and documents the job."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import safe_open


class CheckError(Exception):
    """The export is not what was written, or not what its class loads."""


def require(is_right: bool, said: str) -> None:
    """Raises CheckError: Python leaves `assert` out where it is told to optimise."""
    if not is_right:
        raise CheckError(said)


def check_hashes(job: dict[str, Any]) -> None:
    for name, expected in job["files"].items():
        with Path(job["export"], name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        require(found == expected, f"{name} has SHA-256 {found}, {expected} was written")


def check_model(job: dict[str, Any], library: Any) -> int:
    """Compares every tensor with the class that the exported config builds; returns their
    number."""
    folder = Path(job["export"], job["component"])
    with torch.device("meta"):
        model = library.empty(folder)
    # named_parameters() lists a tied weight once; the files hold it once.
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: tuple(own[name].shape) for name in model.state_dict() if name in own}
    files, names = weight_files(folder, job["stem"]), job["names"]
    stored = {name: shapes[names[name]] for name in names if names[name] in shapes}
    missing = shapes.keys() - {names[name] for name in stored}
    require(not missing, f"missing {sorted(missing)[:3]}")
    # Some published checkpoints hold tensors that their class does not know.
    unknown = {name for name in job["copied"] if name not in stored}
    return compare(folder, files, stored, job["dtypes"], unknown)


def weight_files(folder: Path, stem: str) -> list[str]:
    """Names of a model folder's weight files; CheckError where an index does not match
    them."""
    index = folder / f"{stem}.safetensors.index.json"
    if not index.is_file():
        return [f"{stem}.safetensors"]
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))
    require(content["weight_map"] == where(folder, files), f"{index.name} is wrong")
    return files


def check_adapter(job: dict[str, Any], library: Any) -> int:
    """Compares every file with the adapters that peft builds; returns the number of tensors."""
    folder = Path(job["export"])
    config = peft.LoraConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = peft.get_peft_model(library.empty(Path(job["base"], job["component"])), config)
    state = {n: v for n, v in model.state_dict().items() if ".lora_" in n}
    shapes = {n.replace(".default.", "."): tuple(v.shape) for n, v in state.items()}
    count = compare(folder, ["adapter_model.safetensors"], shapes, job["dtype"])
    for file, prefix in library.other_adapters().items():
        other = {prefix + n.removeprefix("base_model.model."): s for n, s in shapes.items()}
        count += compare(folder, [file], other, job["dtype"])
    return count


def where(folder: Path, files: list[str]) -> dict[str, str]:
    """Tensor name → name of the file that holds it."""
    found: dict[str, str] = {}
    for name in files:
        with safe_open(folder / name, "pt") as file:
            found |= dict.fromkeys(file.keys(), name)
    return found


def compare(
    folder: Path,
    files: list[str],
    shapes: dict[str, tuple[int, ...]],
    dtypes: str | dict[str, str],
    unknown: Collection[str] = (),
) -> int:
    """Raises CheckError unless the files hold exactly the tensors of `shapes`, finite and in their
    types, beside those in `unknown`; returns their number."""
    there = {name: file for name, file in where(folder, files).items() if name not in unknown}
    missing, extra = sorted(shapes.keys() - there), sorted(there.keys() - shapes)
    require(not missing and not extra, f"missing {missing[:3]}, not of the model {extra[:3]}")
    for name, tensor in tensors(folder, files):
        if name in unknown:
            continue
        wanted = dtypes if isinstance(dtypes, str) else dtypes[name]
        found = (tuple(tensor.shape), str(tensor.dtype))
        right = (shapes[name], wanted)
        require(found == right, f"{name} is {found}, not {right}")
        require(bool(torch.isfinite(tensor).all()), f"{name} holds values that are not finite")
    return len(there)


def tensors(folder: Path, files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor), one at a time; each opens its file again, because mapped pages count as
    memory."""
    for name, file_name in where(folder, files).items():
        with safe_open(folder / file_name, "pt") as file:
            yield name, file.get_tensor(name)
