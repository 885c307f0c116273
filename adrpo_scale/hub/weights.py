"""Reads tensors, and slices of them, out of a folder of safetensors.

A rank reads only the rows that it holds: no process ever has the whole model in memory, and no
pickle is read. Also finds a model by folder, `demo:` name or hub id.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.core.file_hashes import file_hashes
from adrpo_scale.core.pace import stepping
from adrpo_scale.core.seeding import Purpose, derive_seed
from adrpo_scale.hub.foreign import open_tensors, same_bytes
from adrpo_scale.hub.lock import REMEDY, NotCachedError, PinnedError, find_here
from adrpo_scale.hub.misfits import explanation
from adrpo_scale.hub.needs import CONVERTED, HubNeed
from adrpo_scale.hub.weight_files import weight_files

log = logging.getLogger(__name__)
_NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


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
    """The tensors of one folder's safetensors, by their names in the model.

    stem: the file name without suffix, e.g. "diffusion_pytorch_model"; `weight_files` decides which
    files count. tied: name → the name of the weight that it is tied to: of a pair that is stored
    twice the first is ignored (`untrue_copies` compares the two), of one that is stored once either
    name will do. name: stored name → name in the model, None for a tensor of another model; by
    default they are the same. Raises the errors of `weight_files`.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        tied: Mapping[str, str] | None = None,
        name: Callable[[str], str | None] = lambda stored: stored,
    ) -> None:
        self.folder = folder
        self._files = weight_files(folder, stem, lambda stored: name(stored) is not None)
        self._stored: dict[str, str] = {}  # name in the model → stored name
        self._copies: dict[str, str] = {}  # stored name of a second copy → name of the first
        self._open: dict[str, safe_open] = {}
        for stored in self._files.file_of:
            own = name(stored)
            if own is not None:
                if own in self._stored:
                    self._copies[self._stored[own]] = own
                self._stored[own] = stored
        for copy, kept in (tied or {}).items():
            if copy in self._stored:
                stored = self._stored.pop(copy)
                if kept in self._stored:
                    self._copies[stored] = kept
                self._stored.setdefault(kept, stored)

    @property
    def stored_names(self) -> Mapping[str, str]:
        """Name in the model → name in the files."""
        return self._stored

    def names(self) -> set[str]:
        return set(self._stored)

    def sha256(self) -> str:
        """One hash over all files and their names: the identity of a base model in any folder."""
        files = {self._files.file_of[stored] for stored in self._stored.values()}
        return combined_sha256([self.folder / name for name in sorted(files)], self.folder)

    def close(self) -> None:
        """Closes the files: mapped pages that were read count as this process's memory."""
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape in the file's header. Raises WeightsError for an unknown name."""
        stored = self._stored_name(name)
        return tuple(self._file(stored).get_slice(stored).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """The type in the file. Raises WeightsError for an unknown name."""
        return self.read(name, 0, 0).dtype

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) of dim 0 of a tensor (all of it by default), on the CPU.

        Raises WeightsError for an unknown name.
        """
        watchdog.beat()  # a large model from a slow disk is no hang
        stored = self._stored_name(name)
        file = self._file(stored)
        piece = file.get_slice(stored)
        return piece[start:stop] if piece.get_shape() else file.get_tensor(stored)

    def _stored_name(self, name: str) -> str:
        if name not in self._stored:
            raise WeightsError(
                f"{self.folder} has no tensor {name!r} among its {len(self._stored)}; "
                "are these the weights of another architecture?"
            )
        return self._stored[name]

    def _file(self, stored: str) -> safe_open:
        name = self._files.file_of[stored]
        if name not in self._open:
            self._open[name] = open_tensors(self.folder / name)
        return self._open[name]

    def untrue_copies(self) -> Iterator[str]:
        """A line for every ignored copy of a tied weight that has other values: the library would
        use both. Reads the weights that are stored twice."""
        for stored, kept in self._copies.items():
            is_same = same_bytes(self._file(stored).get_tensor(stored), self.read(kept))
            self.close()
            if not is_same:
                yield (
                    f"{self.folder} stores {stored} with other values than {self._stored[kept]}, "
                    "and both are the same weight here. If config.json ties two that should not "
                    "be, set tie_word_embeddings to false there, as transformers uses both then; "
                    f"else delete {stored} from the files"
                )


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
        f"{len(extra)} unknown {extra[:3]}; {explanation(wanted, there)}"
    )


def check_finite(name: str, tensor: Tensor, where: Path) -> None:
    """Raises WeightsError for a weight that holds NaN or infinity."""
    if isinstance(tensor, FakeTensor):  # of a rehearsal, which has shapes alone
        return
    if not tensor.numel() or tensor.dtype not in _NUMBERS:
        return
    least, most = torch.aminmax(tensor)
    if not bool(torch.isfinite(least) & torch.isfinite(most)):
        what = "NaN" if bool(torch.isnan(least)) else "infinity"
        raise WeightsError(
            f"{where}: {name} holds {what}, so every output of the model would: its training broke "
            "down, or its conversion to a lower precision; name an earlier checkpoint of it"
        )


def check_loaded(model: nn.Module, found: Mapping[str, Any], where: Path) -> None:
    """Raises WeightsError for a model that its library has loaded with tensors missing, which would
    be random, or not finite. found: the library's `output_loading_info`."""
    missing, extra = found["missing_keys"], sorted(found["unexpected_keys"])
    if missing:
        check_coverage(missing, extra, where)
    if extra:
        log.warning("%s holds %d tensors that are not used, %s first", where, len(extra), extra[0])
    for name, tensor in model.state_dict().items():
        check_finite(name, tensor, where)


def agreement(lines: Iterable[str], *, is_new: bool) -> None:
    """Raises WeightsError for the first of lines that say by what a library would load another
    model; warns of all where the run is not new: it trains what it began with."""
    for line in lines:
        if is_new:
            raise WeightsError(line)
        log.warning("%s (the run goes on with what it began with)", line)


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
        folder = stepping(
            lambda: snapshot_download(
                need.name,
                repo_type=need.type,
                revision=need.revision,
                allow_patterns=list(need.allow),
                ignore_patterns=list(need.ignore) or None,
            )
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
    more = " --repo-type dataset" if need.type == "dataset" else ""
    more += f" --revision {need.revision}" if need.revision else ""
    return f"`hf download {need.name}{more}`"


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
