"""Weights that were published as pickles alone, converted once to safetensors.

The one module that opens a pickle, with `torch.load(weights_only=True)`: it returns nothing but
tensors, and a file that asks for anything else is refused before any of its code runs. Files are
mapped and streamed tensor by tensor, so a model needs no more memory than its largest tensor. The
result is read back and compared, name by name and byte by byte, before it is put in its place.

Tensors that share memory (tied weights) are written out one by one: the result has every name of
the pickle with its values, whatever the model's config states about tying.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adrpo_scale.core.errors import WeightsError
from adrpo_scale.core.file_hashes import file_hashes
from adrpo_scale.core.files import remove_folder, replace_json, sync_folder
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.tensor_files import TensorFileWriter, TensorHeader, can_write
from adrpo_scale.hub.foreign import read_json, same_bytes
from adrpo_scale.hub.needs import CONVERTED, HubNeed, cache_folder

# The libraries' name of a file of pickled weights → of the same in safetensors.
STEMS = {
    "pytorch_model": "model",
    "diffusion_pytorch_model": "diffusion_pytorch_model",
    "open_clip_pytorch_model": "open_clip_model",
}
_SHARD = r"(-\d{5}-of-\d{5})?"
_ALONE = (".pt", ".pth", ".bin")  # of a pickle that its authors named themselves
_NESTED = ("state_dict", "model")  # under which authors put the weights, beside other values
_DEEPEST = 3  # dictionaries in dictionaries; a file may hold one that holds itself
_HASH = "tensors_sha256"  # in the metadata of what was converted


@dataclass(frozen=True)
class PickledWeights:
    """The weights of one model in a repository: its folder there ("" for the top), the stem of the
    pickles' names, and the pickles."""

    folder: str
    stem: str
    files: tuple[str, ...]

    @property
    def index(self) -> str:
        return _path(self.folder, f"{self.stem}.bin.index.json")

    def converted(self, file: str) -> str:
        """The safetensors file that a pickle becomes."""
        path = PurePosixPath(file)
        name = path.name.removeprefix(self.stem).removesuffix(path.suffix)
        stem = STEMS.get(self.stem, self.stem)
        return _path(self.folder, f"{stem}{name}.safetensors")


def _path(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def pickled_weights(need: HubNeed, files: Iterable[str]) -> list[PickledWeights]:
    """Weights of a need that a repository has as pickles and not as safetensors: under the names of
    the libraries, and in place of a safetensors file that the need names without a wildcard. files:
    all paths of the repository."""
    files = sorted(files)
    names: dict[str, list[str]] = {}
    for file in files:
        path = PurePosixPath(file)
        names.setdefault("" if path.parent == PurePosixPath() else str(path.parent), []).append(
            path.name
        )
    found = []
    for folder, there in names.items():
        for stem, safe in STEMS.items():
            if not need.covers(_path(folder, f"{safe}.safetensors")):
                continue
            if any(re.fullmatch(rf"{safe}{_SHARD}\.safetensors", name) for name in there):
                continue
            pickles = [name for name in there if re.fullmatch(rf"{stem}{_SHARD}\.bin", name)]
            if f"{stem}.bin" in pickles:  # some repositories have the same weights in shards, too
                pickles = [f"{stem}.bin"]
            if pickles:
                paths = tuple(_path(folder, name) for name in pickles)
                found.append(PickledWeights(folder, stem, paths))
    return found + _named_alone(need, files)


def _named_alone(need: HubNeed, files: Sequence[str]) -> list[PickledWeights]:
    """Single pickles in place of safetensors files that a need names: `ImageReward.pt`."""
    found = []
    for wanted in need.named:
        path = PurePosixPath(wanted)
        pickles = [str(path.with_suffix(suffix)) for suffix in _ALONE]
        there = [file for file in pickles if file in files]
        if there and wanted not in files and path.stem not in STEMS.values():
            folder = "" if path.parent == PurePosixPath() else str(path.parent)
            found.append(PickledWeights(folder, path.stem, (there[0],)))
    return found


def variants_alone(need: HubNeed, files: Iterable[str]) -> list[str]:
    """Files of weights that a repository has as variants (`model.fp16.safetensors`) alone: at its
    top, and in the folders that a need names. files: all paths of the repository."""
    found = []
    for folder in ["", *need.parts]:
        for stem, safe in STEMS.items():
            if not need.covers(_path(folder, f"{safe}.safetensors")):
                continue
            names = [_name(file) for file in files if file == _path(folder, _name(file))]
            plain = rf"{safe}{_SHARD}\.safetensors|{stem}{_SHARD}\.bin"
            variant = rf"{safe}(\.\w+{_SHARD}|{_SHARD}\.\w+)\.safetensors"
            if not any(re.fullmatch(plain, name) for name in names):
                found += [_path(folder, n) for n in names if re.fullmatch(variant, n)]
    return sorted(found)


def _name(file: str) -> str:
    return PurePosixPath(file).name


def convert_snapshot(
    snapshot: Path, files: Sequence[str], pickled: Sequence[PickledWeights], to: Path
) -> None:
    """Makes the folder `to`: links to the `files` of a snapshot, and its pickled weights as
    safetensors.

    Afterwards `to` is complete, or does not exist. Raises WeightsError for a pickle that holds
    anything but tensors, or cannot be read.
    """
    building = to.with_name(f"{to.name}.tmp")
    remove_folder(building)  # of a conversion that was interrupted
    building.mkdir(parents=True)
    for file in files:
        _link(snapshot / file, building / file, to / file)
    for weights in pickled:
        _convert(snapshot, weights, building)
    for folder in (building, *(path for path in building.rglob("*") if path.is_dir())):
        sync_folder(folder)
    remove_folder(to)
    building.rename(to)
    sync_folder(to.parent)


def as_safetensors(path: Path, read: Sequence[str] = (".safetensors",)) -> Path:
    """The file itself where its suffix is one of `read`; of any other, which is opened as a pickle,
    the safetensors file that it becomes: converted once, into the cache, under its content's hash.

    Raises WeightsError for a pickle that holds anything but tensors, or cannot be read.
    """
    if path.suffix in read:
        return path
    folder = cache_folder() / CONVERTED / "files"
    to = folder / f"{file_hashes([path])[path]}.safetensors"
    if not _is_whole(to):
        tensors = load_tensors(path)
        own = to.with_name(f"{to.stem}.{os.getpid()}.tmp")  # of each rank
        _write(own, tensors)
        compare(own, tensors, path)
        os.replace(own, to)
        sync_folder(folder)
    return to


def is_converted(folder: Path, pickled: Sequence[PickledWeights], files: Iterable[str]) -> bool:
    """Whether `convert_snapshot` has made `folder` from these files, and it is still complete."""
    safe = [folder / weights.converted(file) for weights in pickled for file in weights.files]
    return all(map(_is_whole, safe)) and (not safe or all((folder / f).is_file() for f in files))


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is complete, which the library knows from its header, and its
    tensors have the hash that it states; versions before stated none."""
    try:
        with safe_open(path, "pt") as file:
            stated = (file.metadata() or {}).get(_HASH)
            pace = Pace(f"checking {path.name}", path.stat().st_size)
            tensors = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
            return stated is None or stated == _hash_of(tensors, pace)
    except (OSError, SafetensorError):
        return False


def _hash_of(tensors: Iterable[tuple[str, Tensor]], pace: Pace) -> str:
    """SHA-256 over names and bytes of tensors, in hex."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
        pace.step(tensor.nbytes)
    return digest.hexdigest()


def contents(folder: Path) -> dict[str, int]:
    """Sizes in bytes of all files in a folder, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _link(source: Path, place: Path, final: Path) -> None:
    """A relative link, as the hub's cache makes them: the cache may be moved as a whole."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(os.path.relpath(source, final.parent))
    except OSError:  # a filesystem without links
        shutil.copyfile(source, place)


def _convert(snapshot: Path, weights: PickledWeights, to: Path) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    for file in weights.files:
        safe = weights.converted(file)
        tensors = load_tensors(snapshot / file)
        _write(to / safe, tensors)
        compare(to / safe, tensors, snapshot / file)
        twice = weight_map.keys() & tensors.keys()
        if twice:
            raise WeightsError(f"{snapshot / file}: {min(twice)!r} is in another of its files, too")
        weight_map |= dict.fromkeys(tensors, PurePosixPath(safe).name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        del tensors
    if len(weights.files) > 1:
        _check_index(snapshot / weights.index, weight_map.keys())
        name = _path(weights.folder, f"{STEMS[weights.stem]}.safetensors.index.json")
        facts = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        replace_json(to / name, facts)


def _check_index(index: Path, names: Set[str]) -> None:
    """Raises WeightsError where the pickles' index lists other tensors."""
    if not index.is_file():
        return
    differ = set(read_json(index).get("weight_map", ())) ^ names
    if differ:
        raise WeightsError(
            f"{index} and the files beside it differ in {len(differ)} tensors, {min(differ)!r} "
            "first: the repository is not whole, choose another revision of the model"
        )


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle by name, mapped where its format allows it. Raises WeightsError."""
    try:
        content = _load(path)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is refused ({_reason(error)}): it is not known to hold tensors alone, and "
            "reading anything else could run its author's code. Use a model that is published as "
            "safetensors"
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read as weights ({_reason(error)}); delete it and prefetch again"
        ) from error
    content = _unpacked(content)
    wrong = _other_than_tensors(content)
    if wrong is not None:
        raise WeightsError(
            f"{path} holds {wrong} where tensors by name are expected; convert it by hand and give "
            "its folder"
        )
    return dict(content)


def _unpacked(content: Any) -> Any:
    """The dictionary of weights inside those that hold it under one of `_NESTED`."""
    for _ in range(_DEEPEST):
        if not isinstance(content, dict):
            break
        inner = (content[key] for key in _NESTED if isinstance(content.get(key), dict))
        content = next(inner, content)
    return content


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        # torch's format before 1.6 cannot be mapped: the whole file is in memory for a while.
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    """The part of torch's message that describes the file; the rest advises to trust it."""
    text = str(error)
    named = re.search(r"GLOBAL [\w.]*\w|Unsupported [^.\n]*", text)
    return named[0] if named else (text.splitlines() or [type(error).__name__])[0][:200]


def _other_than_tensors(content: object) -> str | None:
    """The first part of a pickle's content that is not a named tensor; None if there is none."""
    if not isinstance(content, dict) or not content:
        return f"an empty {type(content).__name__}" if not content else type(content).__name__
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"{name!r}: {type(value).__name__}"
        if value.layout != torch.strided or not can_write(value.dtype):
            return f"{name!r} of {value.dtype}, {value.layout}"
    return None


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    headers = [TensorHeader(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    size = sum(header.bytes for header in headers)
    pace = Pace(f"converting to {path.name}", size)
    found = _hash_of(sorted(tensors.items()), Pace(f"hashing {path.name}", size))
    with TensorFileWriter(path, headers, {"format": "pt", _HASH: found}) as file:
        for tensor in tensors.values():
            file.write(tensor)
            pace.step(tensor.nbytes)
        file.finish()


def compare(path: Path, tensors: dict[str, Tensor], source: Path) -> None:
    """Raises WeightsError unless the safetensors file at `path` holds exactly these tensors."""
    with safe_open(path, "pt") as file:
        if set(file.keys()) != tensors.keys():
            raise WeightsError(
                f"{path} has other names than {source}: the disk or memory is faulty"
            )
        for name, tensor in tensors.items():
            if not same_bytes(file.get_tensor(name), tensor):
                raise WeightsError(
                    f"{path}: {name!r} is not what {source} has: the disk or memory is faulty"
                )
