"""Weights in the layout of their authors: one file under a name of its own, without a config."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from adrpo_scale.core.errors import ModelNotFoundError, WeightsError
from adrpo_scale.hub.pickles import as_safetensors
from adrpo_scale.hub.weights import SafetensorsFolder, check_coverage, check_finite

Rename = Callable[[str], str | None]
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def weights_file(folder: Path, stems: Sequence[str], what: str) -> Path:
    """The safetensors file of a folder's weights: the first of `stems` that is there, a pickle
    converted, or else the only safetensors file. what: the setting that names the folder.

    Raises ModelNotFoundError where there is none or are several, and WeightsError for a pickle that
    holds anything but tensors.
    """
    for stem in stems:
        for suffix in _SUFFIXES:
            if (folder / f"{stem}{suffix}").is_file():
                return as_safetensors(folder / f"{stem}{suffix}")
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    there = f"{len(others)} safetensors files of other names" if others else "no safetensors"
    raise ModelNotFoundError(
        f"{what}: {folder} has no {' or '.join(stems)} ({', '.join(_SUFFIXES)}), and {there}: put "
        "that file there, or bring the published model with `adrpo-scale prefetch CONFIG`"
    )


def opened(file: Path, rename: Rename) -> SafetensorsFolder:
    """The tensors of a file by their names in the model; None leaves one out."""
    return SafetensorsFolder(file.parent, file.stem, name=rename)


def filled(
    build: Callable[[], nn.Module], file: Path, rename: Rename, dtype: torch.dtype
) -> nn.Module:
    """The model that `build` makes, on the CPU, frozen, with the weights of a file in `dtype`.

    Raises WeightsError unless they are exactly the model's tensors in names and shapes, and finite.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    weights = opened(file, rename)
    wanted = model.state_dict()
    check_coverage(wanted, weights.names(), file)
    tensors: dict[str, Tensor] = {}
    for name, expected in wanted.items():
        if weights.shape(name) != tuple(expected.shape):
            raise WeightsError(
                f"{file}: {name} has the shape {list(weights.shape(name))}, the model "
                f"{list(expected.shape)}: these are the weights of another model"
            )
        values = weights.read(name)
        check_finite(name, values, file)
        tensors[name] = values.to(dtype)
    model.load_state_dict(tensors, assign=True)
    weights.close()
    return model.requires_grad_(False).eval()
