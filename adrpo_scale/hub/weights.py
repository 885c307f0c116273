"""Reads tensors, and slices of them, out of a folder of safetensors.

A rank reads only the rows that it holds: no process ever has the whole model in memory, and no
pickle is read. Also finds a model by folder, `demo:` name or hub id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.core.file_hashes import file_hashes
from adrpo_scale.core.seeding import Purpose, derive_seed
from adrpo_scale.hub.lock import REMEDY, NotCachedError, PinnedError, find_here
from adrpo_scale.hub.needs import CONVERTED, HubNeed


class WeightSource(Protocol):
    """Tensors by name, read in rows of dim 0.

    shape: without reading the tensor. sha256: of everything that may be read; sources with equal
    hashes are the same model, in whichever folder. close: closes open files.
    """

    folder: Path

    def names(self) -> set[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...

    def sha256(self) -> str: ...

    def close(self) -> None: ...


class SafetensorsFolder:
    """The tensors of all safetensors files of one folder, by name.

    stem: the file name without suffix, e.g. "diffusion_pytorch_model"; `stem.safetensors` or the
    files that `stem.safetensors.index.json` lists are read. unwanted: tensors to ignore. Raises
    ModelNotFoundError where neither file, or not every listed file, is there.
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
                "safetensors only: `adrpo-scale prefetch` converts a model of the hub's that has "
                "pickles alone; save one of your own with `save_pretrained`"
            )
        missing = {name for name in self._file_of.values() if not (folder / name).is_file()}
        if missing:
            raise ModelNotFoundError(
                f"{folder} is incomplete: {index.name} lists {', '.join(sorted(missing))}, which "
                "is missing; bring it here with `adrpo-scale prefetch CONFIG`"
            )
        for name in unwanted:
            self._file_of.pop(name, None)
        self._open: dict[str, safe_open] = {}

    def names(self) -> set[str]:
        return set(self._file_of)

    def sha256(self) -> str:
        """One hash over all files and their names: the identity of a base model in any folder."""
        paths = [self.folder / name for name in sorted(set(self._file_of.values()))]
        return combined_sha256(paths, self.folder)

    def close(self) -> None:
        """Closes the files: mapped pages that were read count as this process's memory."""
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file's header. Raises WeightsError for an unknown name."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The type in the file. Raises WeightsError for an unknown name."""
        return self.read(name, 0, 0).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of dim 0 of a tensor (all of it by default), on the CPU.

        Raises WeightsError for an unknown name.
        """
        watchdog.beat()  # a large model from a slow disk is no hang
        file = self._file(name)
        piece = file.get_slice(name)
        return piece[start:stop] if piece.get_shape() else file.get_tensor(name)

    def _file(self, name: str) -> safe_open:
        if name not in self._file_of:
            raise WeightsError(
                f"{self.folder} has no tensor {name!r} among its {len(self._file_of)}; "
                "are these the weights of another architecture?"
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


def find_model(need: HubNeed | str) -> Path:
    """The local folder of a model or dataset: of a folder, `demo:NAME`, or a hub id.

    A repository in `prefetch.lock` is read from the cache at exactly the locked revision. Any other
    hub id is looked up in the cache first, and downloaded if it is not there and the hub answers.
    Raises ModelNotFoundError, which tells how to bring the model here.
    """
    need = HubNeed(need) if isinstance(need, str) else need
    try:
        return find_here(need)
    except PinnedError as error:
        raise ModelNotFoundError(f"{error}; {REMEDY}") from error
    except NotCachedError as error:
        return _download(need, error)


def _download(need: HubNeed, reason: NotCachedError) -> Path:
    """Downloads a need into the cache. reason: the error of the look-up there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            need.name,
            repo_type=need.type,
            allow_patterns=list(need.allow),
            ignore_patterns=list(need.ignore) or None,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ModelNotFoundError(
            f"{reason}, nor a folder here, and the hub cannot be asked ({type(error).__name__}). "
            f"Compute nodes often have no internet: {REMEDY} (without a config, "
            f"{hf_command(need)}), and point HF_HOME of the job at the same cache"
        ) from error
    return Path(folder)


def hf_command(need: HubNeed) -> str:
    """The hub's own command that downloads a need."""
    return f"`hf download {need.name}{' --repo-type dataset' * (need.type == 'dataset')}`"


def combined_sha256(paths: Sequence[Path], root: Path) -> str:
    """One hash over the contents of files and their names inside `root`; a file outside `root`
    counts by the last part of its path."""
    hashes = file_hashes(paths)
    names = [path.relative_to(root) if path.is_relative_to(root) else path.name for path in paths]
    lines = "".join(f"{name} {hashes[p]}\n" for name, p in zip(names, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def revision_of(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache, converted or not; None for any other folder."""
    is_cached = folder.parent.name == "snapshots" or folder.parent.parent.name == CONVERTED
    commit = folder.name if is_cached else ""
    return commit if re.fullmatch(r"[0-9a-f]{40}", commit) else None


def initial_uniform(name: str, shape: Sequence[int], fan_in: int, seed: int) -> Tensor:
    """Kaiming-uniform values (a = √5) of a whole tensor, float32 `shape`, seeded by seed and name.

    The caller cuts its shard out of it: values drawn shard by shard would depend on the number of
    ranks (and repeat on every rank where the shards' generators agree).
    """
    generator = torch.Generator().manual_seed(
        derive_seed(seed, int(Purpose.PARAMETER_INIT), text=name)
    )
    bound = fan_in**-0.5
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
