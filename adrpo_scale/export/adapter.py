"""Exports of the trained LoRA alone: peft's adapter_config.json and adapter_model.safetensors, and
the same tensors in the file format of the base model's own library (`Layout.write_adapters`).

The factor alpha / rank of training is in the tensors (`Material.factor`), and every file states
alpha = rank. So tools that read the tensors alone, and count a missing alpha as the rank, apply the
adapters at full strength (diffusers without its metadata, ComfyUI, kohya's scripts). The product is
rounded once, to the written type; a power of two, 1 included, changes no digit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.core.errors import ExportError, given
from adrpo_scale.core.tensor_files import FileFacts, file_sha256
from adrpo_scale.engines.adapters import is_adapter
from adrpo_scale.export.base import Material, Written, check_changed
from adrpo_scale.export.layouts import layout_of
from adrpo_scale.export.peft_folder import PEFT_FILE, write_peft

_REMEDY = "please open an issue"


def adapter_bytes(material: Material, dtype: torch.dtype) -> int:
    """Bytes that `write_adapter` writes, in at most two files."""
    shapes = (material.reader.shape(n, material.part) for n in material.reader.names(material.part))
    return 2 * sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize


def write_adapter(material: Material, dtype: torch.dtype, folder: Path) -> Written:
    """Writes every file of the adapters, in `dtype`. All of them are in memory at once.

    Raises ExportError where every B is zero in `dtype`: such adapters change nothing.
    """
    tensors = _adapters(material, dtype)
    ups = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    changed = sum(bool(tensor.any()) for tensor in ups)
    layout, settings = layout_of(material.target), lora_settings(material)
    write_peft(material.base, tensors, settings | dict(layout.peft_settings), folder)
    names = [PEFT_FILE, *layout.write_adapters(material, tensors, settings, folder)]
    files = {name: _facts(folder / name) for name in names}
    written = Written(files, len(ups), changed)
    check_changed(written, dtype)
    return written


def _adapters(material: Material, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by their names in the files, which lack peft's adapter name `default`."""
    reader, part = material.reader, material.part
    names = sorted(reader.names(part))
    strange = [name for name in names if not is_adapter(name)]
    if strange:
        raise ExportError(
            f"{reader.folder} holds {strange[:3]}, expected LoRA adapters alone; {_REMEDY}"
        )
    return {
        n.replace(".default.", "."): (reader.whole(n, part).double() * material.factor(n)).to(dtype)
        for n in names
    }


def lora_settings(material: Material) -> dict[str, Any]:
    """Arguments of a LoraConfig, whose alpha is the rank; only those that older versions of peft
    know, too."""
    lora, spec = material.reader.manifest.document["lora"], material.spec
    targets = given(spec.lora).targets or spec.lora_targets
    return {
        "r": lora["rank"],
        "lora_alpha": lora["rank"],
        "target_modules": targets if isinstance(targets, str) else sorted(targets),
    }


def _facts(path: Path) -> FileFacts:
    return FileFacts(path.name, path.stat().st_size, file_sha256(path))
