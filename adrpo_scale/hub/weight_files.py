"""Which files of a folder are its weights: the one place that decides it, as the libraries do.

transformers (stem `model`) reads `model.safetensors` and, without it, the files that
`model.safetensors.index.json` lists; diffusers (stem `diffusion_pytorch_model`) reads an index
before a single file. Both read every tensor of the listed files, wherever the index says that it
lies. What they read on request alone is the business of `beside`.

Where a folder has both, they must hold the same; `rivals` names the first difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.hub.foreign import damaged, open_tensors, read_json, same_bytes
from adrpo_scale.hub.misfits import DEQUANTISE, adapter_line, stray_adapter_line

TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"
ADAPTER = "adapter_config.json"
SAFE = ".safetensors"
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SHARD = r"-\d{5}-of-\d{5}"
_DISTRIBUTED = r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors"  # transformers reads them first
EXPLICIT = "transformers_weights"  # in config.json: the file that transformers reads instead


@dataclass(frozen=True)
class Candidate:
    """Weights that a library could read. name: the file, or the index. listed: tensor → file by
    the index; None for a single file."""

    folder: Path
    name: str
    files: tuple[str, ...]
    listed: dict[str, str] | None = None

    def holds(self, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, list[str]]:
        """file → names of its tensors, by the headers of the files that hold a wanted one. Raises
        DamagedFileError."""
        files = set(self.files)
        if self.listed is not None:
            files = {file for name, file in self.listed.items() if wanted(name)}
        found = {}
        for file in sorted(files):
            with open_tensors(self.folder / file) as opened:
                found[file] = list(opened.keys())
        return found


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a folder. file_of: tensor → the file in which it is read. unlisted: tensors of
    the files that their index does not list. twice: tensors that several files hold. others:
    further candidates."""

    chosen: Candidate
    file_of: dict[str, str]
    unlisted: tuple[str, ...] = ()
    twice: dict[str, list[str]] = field(default_factory=dict)
    others: tuple[Candidate, ...] = ()


def weight_files(
    folder: Path, stem: str, wanted: Callable[[str], bool] = lambda name: True
) -> WeightFiles:
    """The weights of a folder. stem: of the library's file names. wanted: False for tensors of
    another model; files that an index lists for such tensors alone are not opened.

    Raises ModelNotFoundError where there are none, or not all files of an index, and
    DamagedFileError where a file cannot be read, or an index lists a tensor that no file has.
    """
    found = candidates(folder, stem)
    if not found:
        raise ModelNotFoundError(_nothing(folder, stem))
    # Runs read an index first, whichever the library; where candidates differ, none begins.
    chosen = next((each for each in found if each.listed is not None), found[0])
    held = chosen.holds(wanted)
    places: dict[str, list[str]] = {}
    for file, tensors in held.items():
        for name in tensors:
            places.setdefault(name, []).append(file)
    listed = chosen.listed if chosen.listed is not None else {n: f[0] for n, f in places.items()}
    lost = sorted(name for name in listed.keys() - places if wanted(name))
    if lost:
        raise damaged(
            folder / chosen.name,
            f"is stale: it lists {lost[0]} in {listed[lost[0]]}, which does not hold it",
        )
    return WeightFiles(
        chosen,
        {n: f if f in places.get(n, [f]) else places[n][-1] for n, f in listed.items()},
        tuple(sorted(name for name in places.keys() - listed if wanted(name))),
        {name: files for name, files in places.items() if len(files) > 1},
        tuple(each for each in found if each is not chosen),
    )


def candidates(folder: Path, stem: str) -> list[Candidate]:
    """What a folder has, in the order in which its library looks. Raises ModelNotFoundError for an
    index whose files are missing and that the library would read."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    found = [Candidate(folder, single.name, (single.name,))] if _is_there(single) else []
    if not _is_there(index):
        return found
    listed = _listed(index)
    files = sorted(set(listed.values()))
    missing = [name for name in files if not _is_there(folder / name)]
    if missing and found and stem == TRANSFORMERS:
        return found  # as transformers, which does not look at the index then
    if missing:
        more = f", or delete {index.name} if {single.name} is meant" if found else ""
        others = [p.name for p in folder.glob("*.safetensors") if _is_shard(p.name, stem)]
        unlisted = sorted(set(others) - set(files))
        if unlisted and not found:
            more = f"; {_few(unlisted)} are there instead: bring the index that belongs to them"
        raise ModelNotFoundError(
            f"{folder} is incomplete: {index.name} lists {_few(missing)}, which "
            f"{'is' if len(missing) == 1 else 'are'} missing; bring it here with `adrpo-scale "
            f"prefetch CONFIG`{more}"
        )
    sharded = Candidate(folder, index.name, tuple(files), listed)
    return [*found, sharded] if stem == TRANSFORMERS else [sharded, *found]


def _is_shard(name: str, stem: str) -> bool:
    return re.fullmatch(rf"{stem}{_SHARD}\.safetensors", name) is not None


def _listed(index: Path) -> dict[str, str]:
    """The weight map of an index. Raises DamagedFileError."""
    listed = read_json(index).get("weight_map")
    is_map = isinstance(listed, dict) and all(isinstance(f, str) for f in listed.values())
    if not is_map or not listed:
        raise damaged(index, "has no weight_map of tensors and files")
    for file in listed.values():
        if Path(file).name != file:
            raise damaged(index, f"names {file!r}, which is no file beside it")
        if not file.endswith(SAFE):
            raise damaged(index, f"names {file!r}, and weights are read from {SAFE} files only")
    return dict(listed)


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_symlink()  # a broken link is named when it is read


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return ", ".join(names[:3]) + more


# ---- disagreements -------------------------------------------------------------------------------


def rivals(files: WeightFiles, stem: str) -> Iterator[str]:
    """A line for everything in the folder by which a library would load other weights than those
    that are read here. Contents are compared only where there are two candidates."""
    folder, chosen = files.chosen.folder, files.chosen
    for other in files.others:
        where = difference(chosen, other)
        if where is not None:
            first = "the former" if stem == DIFFUSERS else "the latter"
            yield (
                f"{folder} has {chosen.name} and {other.name}, which differ ({where}); "
                f"{library_of(stem)} reads {first}: delete the one that is not meant"
            )
    for name, places in files.twice.items():
        one, *others = [_tensor(folder / file, name) for file in places]
        if not all(same_bytes(one, another) for another in others):
            yield (
                f"{folder} holds {name} in {' and '.join(places)} with different values: delete "
                "the file that is not meant, and its entries in the index"
            )
    if files.unlisted:
        yield (
            f"{folder}: {chosen.name} does not list {_few(files.unlisted)}, which its files hold "
            f"and {library_of(stem)} loads: bring the index that belongs to these files"
        )


def read_instead(folder: Path) -> Iterator[str]:
    """A line for everything by which transformers would make another model of a folder than its
    weights alone state: adapters, quantisation, files that it reads in their place."""
    if (folder / ADAPTER).is_file():
        yield adapter_line(folder)
    else:
        strays = [name for name in _ADAPTERS if _is_there(folder / name)]
        yield from (stray_adapter_line(folder, name, ADAPTER) for name in strays[:1])
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    quantised = _quantisation(config)
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        yield (
            f"{path} states quantization_config ({method or 'of an unknown method'}), and training "
            f"needs all bits of the weights: {DEQUANTISE}"
        )
    if config.get(EXPLICIT) is not None:
        yield (
            f"{path} states {EXPLICIT} = {config[EXPLICIT]!r}, which transformers reads in place "
            f"of {TRANSFORMERS}.safetensors: give the file that name and delete the key"
        )
    parts = [path.name for path in folder.glob("shard-*") if re.fullmatch(_DISTRIBUTED, path.name)]
    if parts:
        yield (
            f"{folder} holds {_few(sorted(parts))}, a distributed checkpoint, which transformers "
            "reads first: delete it, or load it with transformers and save it to another folder"
        )


def _quantisation(config: Mapping[str, Any]) -> Any:
    """`quantization_config` of a model's config, or of that of its language model."""
    parts = [config.get(name) for name in ("thinker_config", "text_config")]
    found = [config.get("quantization_config"), *(_quantisation(p) for p in parts if p)]
    return next((each for each in found if each), None)


def difference(a: Candidate, b: Candidate) -> str | None:
    """The first difference of two candidates, as words; None where they hold the same tensors."""
    where = [{n: f for f, tensors in each.holds().items() for n in tensors} for each in (a, b)]
    only = sorted(where[0].keys() ^ where[1].keys())
    if only:
        owner = a if only[0] in where[0] else b
        return f"{only[0]} is in {owner.name} alone"
    for name in sorted(where[0]):
        watchdog.beat()  # a large model from a slow disk is no hang
        tensors = (_tensor(c.folder / w[name], name) for c, w in zip((a, b), where, strict=True))
        if not same_bytes(*tensors):
            return f"{name} has other values"
    return None


def _tensor(path: Path, name: str) -> Tensor:
    with open_tensors(path) as file:
        return file.get_tensor(name)


def library_of(stem: str) -> str:
    """The library that reads files of this stem."""
    return "diffusers" if stem == DIFFUSERS else "transformers"


# ---- folders without weights that are read -------------------------------------------------------


def _nothing(folder: Path, stem: str) -> str:
    """The error of a folder without weights: what it holds instead, and what helps."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    head = f"{folder} holds neither {stem}.safetensors nor {stem}.safetensors.index.json"
    for pattern, said in _INSTEAD.items():
        there = [name for name in names if re.fullmatch(pattern.replace("STEM", stem), name)]
        if there:
            return f"{head}, but {_few(there)}: {said.replace('STEM', stem)}"
    return (
        f"{head}; weights are read from safetensors only: `adrpo-scale prefetch` converts a model "
        "of the hub's that has pickles alone; save one of your own with `save_pretrained`"
    )


_INSTEAD = {  # names that other kinds of folders have → what they are, and what helps
    rf"STEM{_SHARD}\.safetensors": (
        "shards without their index; bring STEM.safetensors.index.json, which was published with "
        "them"
    ),
    rf"STEM(\.[\w-]+?{_SHARD}|{_SHARD}\.\w+|\.\w+)\.safetensors": (
        "a variant, of lower precision as a rule, which libraries read on request alone; bring the "
        "files without a variant, or load it once with `from_pretrained(…, variant=…)` and save it "
        "with `save_pretrained`"
    ),
    r"adapter_(model\.safetensors|config\.json)": (
        "adapters without their base; merge them into it (peft's `merge_and_unload`), save that "
        "with `save_pretrained`, and name its folder"
    ),
    r".*\.gguf": "quantised weights of llama.cpp; name the model that they were made from",
    r"consolidated.*|.*\.distcp|shard-.*\.safetensors": (
        "weights in the layout of another program; bring the model in the layout of its library"
    ),
    rf"(diffusion_pytorch_)?model({_SHARD})?\.safetensors": (
        "weights under another library's name; name the folder of the right component"
    ),
}
