"""The values of an export against a merge of the base and the checkpoint in float64."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from adrpo_scale.core.errors import ExportError
from adrpo_scale.export.base import Material, Request, Written
from adrpo_scale.export.layouts import layout_of
from adrpo_scale.export.stored import names_in

PIECE = 1 << 22  # elements compared at once


def compare_values(material: Material, request: Request, written: Written, folder: Path) -> float:
    """The largest error over all values, in units of the error that rounding allows.

    Raises ExportError where it is above 1, or a tensor was not compared.
    """
    value_of = _adapter_value if request.form == "adapter" else _merged_value
    worst, seen = 0.0, set()
    for path in written.files:
        for name in sorted(names_in(folder / path) - material.stored.copied):
            with safe_open(folder / path, "pt") as file:  # reopened: mapped pages count as memory
                tensor = file.get_tensor(name)
            off = _off(tensor, *value_of(name, material))
            if not off <= 1:
                raise ExportError(
                    f"{path}: {name} is off by {off:.3g} times what rounding explains; please open "
                    "an issue"
                )
            worst = max(worst, off)
            seen.add(name)
            material.close()
    wanted = set(material.stored.policy_names)
    if request.form == "adapter":
        # A name in the policy may stand in several files, under other names.
        seen = {layout_of(material.target).trained_name(name, material.target) for name in seen}
        wanted = {n.replace(".default.", ".") for n in material.reader.names(material.part)}
    if wanted - seen:
        raise ExportError(
            f"no file that was written holds {min(wanted - seen)}: it was not compared; export "
            "again without --recheck"
        )
    return worst


def _off(found: Tensor, expected: Tensor, slack: Tensor) -> float:
    """Largest |found - expected| in units of the allowed rounding: 0 where both agree, NaN where
    one is NaN."""
    number = torch.finfo(found.dtype)
    smallest, worst = number.smallest_normal * number.eps, []
    parts, wanted_parts = found.flatten().split(PIECE), expected.flatten().split(PIECE)
    slacks = slack.flatten().split(PIECE) if slack.ndim else [slack] * len(parts)
    for some, wanted, more in zip(parts, wanted_parts, slacks, strict=True):
        wanted = wanted.double()
        allowed = number.eps / 2 * wanted.abs() + smallest + more
        worst.append(((some.double() - wanted).abs() / allowed).max())
    return float(torch.stack(worst).max())  # Python's `max` would lose a NaN


Value = tuple[Tensor, Tensor]
NOTHING = torch.zeros(())


def _adapter_value(name: str, material: Material) -> Value:
    bare = layout_of(material.target).trained_name(name, material.target)
    stored = bare.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")
    tensor = material.reader.whole(stored, material.part)
    strong = material.factor(stored) * tensor.double()
    # From float64, torch rounds to a lower type by way of float32.
    return strong, torch.finfo(torch.float32).eps * strong.abs()


def _merged_value(stored: str, material: Material) -> Value:
    """(the value in float64, the possible error of its sums in float32)."""
    reader, part, name = material.reader, material.part, material.stored.policy_names[stored]
    module, trained = name.removesuffix(".weight"), reader.names(part)
    if name in trained:
        return reader.whole(name, part), NOTHING
    weight = material.spec.weights.read(name)
    if f"{module}.lora_A.default.weight" not in trained:
        return weight, NOTHING
    down = reader.whole(f"{module}.lora_A.default.weight", part).double()
    up = reader.whole(f"{module}.lora_B.default.weight", part).double()
    scaling, weight = material.scaling, weight.double()
    sums = weight.abs() + scaling * (up.abs() @ down.abs())
    return weight + scaling * (up @ down), (len(down) + 2) * torch.finfo(torch.float32).eps * sums
