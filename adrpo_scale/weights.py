"""Reads tensors, and slices of them, out of a folder of safetensors.

A rank reads only the rows that it holds: no process ever has the whole model in memory, and no
pickle is read. Also finds a model by folder, `demo:` name or hub id.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from adrpo_scale.errors import ModelNotFoundError, WeightsError
from adrpo_scale.file_hashes import file_hashes
from adrpo_scale.paths import resolve_path
from adrpo_scale.seeding import Purpose, derive_seed


class WeightSource(Protocol):
    """Tensors by name, read in rows of dim 0."""

    folder: Path

    def names(self) -> set[str]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...

    def close(self) -> None: ...


class SafetensorsFolder:
    """The tensors of all safetensors files of one folder, by name.

    stem: the file name without suffix, e.g. "diffusion_pytorch_model"; `stem.safetensors` or the
    files that `stem.safetensors.index.json` lists are read. unwanted: tensors that are passed over
    where they are there. Raises ModelNotFoundError where neither file is there.
    """

    def __init__(self, folder: Path, stem: str, unwanted: Sequence[str] = ()) -> None:
        self.folder = folder
        index = folder / f"{stem}.safetensors.index.json"
        single = folder / f"{stem}.safetensors"
        if index.is_file():
            self._file_of = json.loads(index.read_text())["weight_map"]
        elif single.is_file():
            with safe_open(single, "pt") as file:
                self._file_of = dict.fromkeys(file.keys(), single.name)
        else:
            raise ModelNotFoundError(
                f"{folder} holds neither {single.name} nor {index.name}; weights are read from "
                "safetensors only: save them with `save_pretrained`, or download the variant of "
                "the model that has them"
            )
        missing = {name for name in self._file_of.values() if not (folder / name).is_file()}
        if missing:
            raise ModelNotFoundError(
                f"{folder} is half there: {index.name} lists {', '.join(sorted(missing))}, which "
                "is missing; download the model again"
            )
        for name in unwanted:
            self._file_of.pop(name, None)
        self._open: dict[str, safe_open] = {}

    def names(self) -> set[str]:
        return set(self._file_of)

    def sha256(self) -> str:
        """One hash over all files, by name: what identifies a base model wherever it lies."""
        paths = [self.folder / name for name in sorted(set(self._file_of.values()))]
        return combined_sha256(paths, self.folder)

    def close(self) -> None:
        """Lets go of the files: mapped pages that were read count as this process's memory."""
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """From the file's header. Raises WeightsError for an unknown name."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """As it lies on the disk. Raises WeightsError for an unknown name."""
        return self.read(name, 0, 0).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of dim 0 of a tensor (all of it by default), on the CPU.

        Raises WeightsError for an unknown name.
        """
        file = self._file(name)
        piece = file.get_slice(name)
        return piece[start:stop] if piece.get_shape() else file.get_tensor(name)

    def _file(self, name: str) -> safe_open:
        if name not in self._file_of:
            raise WeightsError(
                f"{self.folder} has no tensor {name!r} among its {len(self._file_of)}; "
                "is it the weights of another architecture?"
            )
        file_name = self._file_of[name]
        if file_name not in self._open:
            self._open[file_name] = safe_open(self.folder / file_name, "pt")
        return self._open[file_name]


def check_coverage(expected: Iterable[str], available: Iterable[str], where: Path) -> None:
    """Raises WeightsError unless the folder's tensors are exactly the model's.

    Loading with `strict=False` has left models half uninitialised elsewhere, with no message.
    """
    wanted, there = set(expected), set(available)
    if wanted == there:
        return
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    raise WeightsError(
        f"weights in {where} do not fit the model: {len(missing)} missing {missing[:3]}, "
        f"{len(extra)} unknown {extra[:3]}; use the config.json that belongs to these weights"
    )


def find_model(
    name: str, allow_patterns: Sequence[str] | None = None, repo_type: str = "model"
) -> Path:
    """The local folder of a model (or of a "dataset"): a folder, `demo:NAME`, or a hub id.

    A hub id is looked up in the local cache first and downloaded only if the hub may be reached.
    Raises ModelNotFoundError, with how to bring the model here, where it cannot be had.
    """
    if name.startswith("demo:"):
        return resolve_path(name)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelNotFoundError(
            f"{repo_type} folder {name!r} is not there; give a folder or a hub id"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    wanted: Any = {
        "allow_patterns": list(allow_patterns) if allow_patterns else None,
        "repo_type": repo_type,
    }
    try:
        return Path(snapshot_download(name, local_files_only=True, **wanted))
    except LocalEntryNotFoundError:
        pass  # not in the cache: try the hub below
    except HFValidationError as error:
        raise ModelNotFoundError(
            f"{repo_type} folder {name!r} is not there, and it is no hub id either: {error}"
        ) from error
    try:
        return Path(snapshot_download(name, **wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        cache = os.environ.get("HF_HOME", "~/.cache/huggingface")
        raise ModelNotFoundError(
            f"{repo_type} {name!r} is neither a folder here nor in the cache {cache}, and the hub "
            f"cannot be asked ({type(error).__name__}). Compute nodes often have no internet: on a "
            f"login node, accept the {repo_type}'s terms on its page, run `hf auth login` and `hf "
            f"download {name}{' --repo-type dataset' * (repo_type == 'dataset')}`, and point "
            "HF_HOME of the job at the same cache"
        ) from error


def combined_sha256(paths: Sequence[Path], root: Path) -> str:
    """One hash over the contents of files and their names inside `root`; of a file that lies
    elsewhere the last part of its name."""
    hashes = file_hashes(paths)
    names = [path.relative_to(root) if path.is_relative_to(root) else path.name for path in paths]
    lines = "".join(f"{name} {hashes[p]}\n" for name, p in zip(names, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def revision_of(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for any other folder."""
    commit = folder.name if folder.parent.name == "snapshots" else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def initial_uniform(name: str, shape: Sequence[int], fan_in: int, seed: int) -> Tensor:
    """Kaiming-uniform values (a = √5) of a whole tensor, float32, from a seed of its own.

    Initialised whole and cut afterwards: random values drawn shard by shard would depend on the
    number of ranks (and repeat on every rank where the shards' generators agree).
    """
    generator = torch.Generator().manual_seed(
        derive_seed(seed, int(Purpose.PARAMETER_INIT), text=name)
    )
    bound = fan_in**-0.5
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
