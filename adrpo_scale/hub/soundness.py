"""Whether a model's folder is whole, and means one model: asked by `preflight` and by every start.

    damage          files that their library cannot parse, by their headers alone
    disagreements   files by which the library could load other weights than those that are read
    notices         files of weights that are neither read nor compared

Only files that a need covers, and that the libraries always read, are looked at: a folder of one's
own may hold anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.errors import AdrpoError, DamagedFileError, ModelNotFoundError, StopRequested
from adrpo_scale.hub import beside
from adrpo_scale.hub.foreign import check_whole, first_words, open_tensors, read_json
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.weight_files import (
    DIFFUSERS,
    TRANSFORMERS,
    candidates,
    read_instead,
    rivals,
    weight_files,
)

_PARSED = (
    "config.json",
    "generation_config.json",
    "model_index.json",
    "scheduler_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)
_TEXTS = (  # a pointer of Git LFS would be a template, or a vocabulary, of its own
    "chat_template.jinja",
    "merges.txt",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def damage(folder: Path, need: HubNeed | None = None) -> list[str]:
    """A line for every damaged file of a model's folder; with a need, of those that it covers."""
    found = []
    for place in _places(folder, need):
        paths = [place / name for name in _PARSED if _is_read(folder, place / name, need)]
        for path in paths:
            found += _tried(partial(read_json, path))
        paths = [place / name for name in _TEXTS if _is_read(folder, place / name, need)]
        for path in paths:
            found += _tried(partial(check_whole, path))
        for stem in _stems(folder, place, need):
            found += _tried(partial(_open_all, place, stem))
    for name in need.named if need is not None else ():
        if (folder / name).is_file():
            found += _tried(partial(open_tensors, folder / name))
    return found


def disagreements(folder: Path, need: HubNeed | None = None) -> Iterator[str]:
    """A line for everything by which a library would load other weights of a whole folder."""
    for place in _places(folder, need):
        for stem in _stems(folder, place, need):
            files = weight_files(place, stem)
            yield from rivals(files, stem)
            yield from beside.unlike_variants(files, stem)
            is_raw = stem == TRANSFORMERS and need is not None and need.raw
            instead = list(read_instead(place)) if is_raw else []
            yield from instead or beside.quantised_tensors(files)


def notices(folder: Path, need: HubNeed | None = None) -> Iterator[str]:
    """A line for every place in a model's folder with files of weights that are left alone."""
    for place in _places(folder, need):
        for stem in _stems(folder, place, need):
            yield from beside.notices(place, stem)


def _places(folder: Path, need: HubNeed | None) -> list[Path]:
    """The folder, and those inside that a need names: the components of a pipeline."""
    parts = [] if need is None else need.parts
    return [folder, *(folder / part for part in parts if (folder / part).is_dir())]


def _is_read(folder: Path, path: Path, need: HubNeed | None) -> bool:
    is_there = path.exists() or path.is_symlink()
    return is_there and (need is None or need.covers(path.relative_to(folder).as_posix()))


def _stems(folder: Path, place: Path, need: HubNeed | None) -> Iterator[str]:
    """The stems of weights in a folder."""
    for stem in (TRANSFORMERS, DIFFUSERS):
        names = (f"{stem}.safetensors", f"{stem}.safetensors.index.json")
        if any(_is_read(folder, place / name, need) for name in names):
            yield stem


def _open_all(folder: Path, stem: str) -> None:
    for each in candidates(folder, stem):
        for file in each.files:
            open_tensors(folder / file)
    weight_files(folder, stem)


def _tried(read: Callable[[], Any]) -> list[str]:
    try:
        read()
    except ModelNotFoundError as error:
        return [str(error)]
    return []


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """A context for a library that loads `what` (a noun) from a folder: an exception of any class
    becomes DamagedFileError, which names the damaged file where one is found."""
    try:
        yield
    except (AdrpoError, StopRequested, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # tokenizers raises Exception itself
        lines = damage(folder)
        said = f"{type(error).__name__}: {first_words(error)}"
        if lines:
            raise DamagedFileError(lines[0]) from error
        remedy = "bring the folder again (`adrpo-scale prefetch CONFIG`, `hf download` or a copy)"
        if isinstance(error, ImportError):
            remedy = "install the package that it names"
        elif "trust_remote_code" in str(error):
            said = "ValueError: it needs code of its own"
            remedy = (
                "code that comes with a model is never run here: name a model of a type that its "
                "library knows"
            )
        elif "does not recognize" in said:  # transformers, of a model type
            remedy = "install a version of the library that knows it"
        raise DamagedFileError(
            f"{folder}: its {what} cannot be loaded ({said}); {remedy}"
        ) from error


def damage_of(needs: Sequence[HubNeed], find: Callable[[HubNeed], Path]) -> list[str]:
    """Lines of `damage` of all models among the needs. find: the folder of a need; one that is not
    found is left out."""
    found = []
    for need in needs:
        if need.type != "model":
            continue
        try:
            folder = find(need)
        except AdrpoError:
            continue
        found += [f"{need.what}: {line}" for line in damage(folder, need)]
    return list(dict.fromkeys(found))
