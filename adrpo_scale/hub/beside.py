"""Weights beside those that are read: variants, pickles and adapters without their config.

Libraries read a variant (`model.fp16.safetensors`) on request alone, and a pickle only where there
is no safetensors. A variant must be the same model at another precision: names, shapes, and a
sample of every tensor's values are compared. A pickle is not opened, so it is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import DamagedFileError
from adrpo_scale.hub.foreign import open_tensors, same_bytes
from adrpo_scale.hub.misfits import DEQUANTISE
from adrpo_scale.hub.weight_files import DIFFUSERS, Candidate, WeightFiles, library_of

SAMPLE = 1 << 14  # numbers at the beginning, in the middle and at the end of a tensor
_SHARD = r"-\d{5}-of-\d{5}"
_PICKLES = {"model": "pytorch_model", "diffusion_pytorch_model": "diffusion_pytorch_model"}
_FEW_BITS = re.compile(r"(F8|F4|F6|I8|U8|E8).*")
_INTEGERS = re.compile(r"[IU]\d+|BOOL")


def unlike_variants(files: WeightFiles, stem: str) -> Iterator[str]:
    """A line for every variant that is another model than the weights that are read."""
    chosen = files.chosen
    for variant in _variants(chosen.folder, stem):
        try:
            where = _unlikeness(chosen, variant)
        except DamagedFileError:  # nothing reads it; `notices` names it
            continue
        if where is not None:
            yield (
                f"{chosen.folder} has {chosen.name} and {variant.name}, which differ by more than "
                f"their precision ({where}); {library_of(stem)} reads the former, and a variant on "
                "request alone: delete the one that is not meant"
            )


def notices(folder: Path, stem: str) -> Iterator[str]:
    """A line for files of weights in a folder that are neither read nor compared."""
    pickle = _PICKLES[stem]
    names = [path.name for path in sorted(folder.iterdir())]
    unread = [n for n in names if re.fullmatch(rf"{pickle}({_SHARD})?\.bin(\.index\.json)?", n)]
    if stem == DIFFUSERS:
        unread += [n for n in names if re.fullmatch(r"pytorch_lora_weights\.\w+", n)]
    for variant in _variants(folder, stem):
        try:
            variant.holds()
        except DamagedFileError:
            unread.append(variant.name)
    if unread:
        yield (
            f"{folder} holds {', '.join(unread[:3])}{' and more' * bool(unread[3:])} beside the "
            f"safetensors that are read, as {library_of(stem)} does: it is not opened, so nothing "
            "says whether it is the same model"
        )


def quantised_tensors(files: WeightFiles) -> Iterator[str]:
    """A line where weights are stored as integers or in eight bits or fewer, without a config that
    says so: what turns them into weights again is not there."""
    for file, names in files.chosen.holds().items():
        with open_tensors(files.chosen.folder / file) as opened:
            for name in names:
                kind = opened.get_slice(name).get_dtype()
                is_weight = name.endswith((".weight", ".bias")) and _INTEGERS.fullmatch(kind)
                if is_weight or _FEW_BITS.fullmatch(kind):
                    yield (
                        f"{files.chosen.folder / file} stores {name} as {kind}: it is quantised, "
                        f"config.json does not say how, and training needs all bits: {DEQUANTISE}"
                    )
                    return


# ---- variants ------------------------------------------------------------------------------------


def _variants(folder: Path, stem: str) -> list[Candidate]:
    """The variants of a folder, each with all its files: `STEM.NAME.safetensors`, and shards with
    the name before or after their number."""
    pattern = rf"{stem}(?:\.([\w-]+?))?({_SHARD})?(?:\.([\w-]+?))?\.safetensors"
    found: dict[str, list[str]] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.name)
        variant = match and (match[1] or match[3])
        if variant:
            found.setdefault(variant, []).append(path.name)
    return [Candidate(folder, files[0], tuple(files)) for files in found.values()]


def _unlikeness(chosen: Candidate, variant: Candidate) -> str | None:
    """The first difference that precision does not explain, as words; None where there is none."""
    where = [
        {n: each.folder / f for f, names in each.holds().items() for n in names}
        for each in (chosen, variant)
    ]
    common = where[0].keys() & where[1].keys()
    for name in sorted(common):
        watchdog.beat()  # a slow disk is no hang
        shapes, samples = zip(*(_sample(w[name], name) for w in where), strict=True)
        if shapes[0] != shapes[1]:
            return f"{name} has the shapes {shapes[0]} and {shapes[1]}"
        if not _is_close(*samples):
            return f"{name} has other values"
    for each, place in zip((chosen, variant), where, strict=True):
        for name in sorted(place.keys() - common):
            if not _is_spare(name, place, sorted(common)):
                return f"{name} is in {each.name} alone"
    return None


def _is_spare(name: str, place: dict[str, Path], others: Sequence[str]) -> bool:
    """Whether a model may be saved with a tensor or without it: a buffer of integers, or a copy of
    a tied weight."""
    shape, values = _sample(place[name], name)
    if not values.is_floating_point():
        return True
    same = (_sample(place[other], other) for other in others)
    return any(shape == s and same_bytes(values, v) for s, v in same)


def _sample(path: Path, name: str) -> tuple[list[int], Tensor]:
    """(the shape of a tensor, some rows of it)."""
    with open_tensors(path) as file:
        piece = file.get_slice(name)
        shape = list(piece.get_shape())
        if not shape:
            return shape, file.get_tensor(name)
        row = max(1, torch.Size(shape[1:]).numel())
        rows, last = max(1, SAMPLE // row), shape[0]
        if last <= 3 * rows:
            return shape, piece[:]
        starts = (0, (last - rows) // 2, last - rows)
        return shape, torch.cat([piece[start : start + rows] for start in starts])


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same but for the precision of the coarser one: each may have been
    rounded from a third, so they may be one step apart."""
    if a.dtype == b.dtype or not (a.is_floating_point() and b.is_floating_point()):
        return same_bytes(a, b)
    coarse = max((a.dtype, b.dtype), key=lambda t: torch.finfo(t).eps)
    step = torch.finfo(coarse)
    x, y = (t.to(coarse).float() for t in (a, b))
    nothing = 2 * step.smallest_normal * step.eps
    return torch.allclose(x, y, rtol=step.eps, atol=nothing, equal_nan=True)
