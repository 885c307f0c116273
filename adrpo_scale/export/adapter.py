"""The trained LoRA alone, for two libraries in one folder:

    adapter_config.json, adapter_model.safetensors   peft's
    pytorch_lora_weights.safetensors                 diffusers', `pipeline.load_lora_weights`

diffusers' file carries rank and alpha in its metadata: without them the loader takes alpha = rank,
and a run with another alpha comes out with wrong outputs and no message.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
from torch import Tensor

from adrpo_scale.engines.adapters import is_adapter
from adrpo_scale.errors import ExportError
from adrpo_scale.export.base import Material, Written, check_changed
from adrpo_scale.tensor_files import FileFacts, TensorFileWriter, TensorHeader, file_sha256

PEFT_FILE = "adapter_model.safetensors"
DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
_PEFT_PREFIX = "base_model.model."


def adapter_bytes(material: Material, dtype: torch.dtype) -> int:
    """What `write_adapter` will write."""
    shapes = (material.reader.shape(n, material.part) for n in material.reader.names(material.part))
    return 2 * sum(torch.Size(shape).numel() for shape in shapes) * dtype.itemsize


def write_adapter(material: Material, dtype: torch.dtype, folder: Path) -> Written:
    """Both files, of the adapters in `dtype`. They are small, so all are in memory at once.

    ExportError where every B is zero in `dtype`: such adapters change nothing.
    """
    tensors = _adapters(material, dtype)
    ups = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    changed = sum(bool(tensor.any()) for tensor in ups)
    _write_peft(material, tensors, folder)
    _write_diffusers(material, tensors, folder)
    files = {PEFT_FILE: _facts(folder / PEFT_FILE), DIFFUSERS_FILE: _facts(folder / DIFFUSERS_FILE)}
    written = Written(files, len(ups), changed)
    check_changed(written, dtype)
    return written


def _adapters(material: Material, dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors by the name that they have in both libraries, without peft's name of the adapter."""
    reader, part = material.reader, material.part
    names = sorted(reader.names(part))
    strange = [name for name in names if not is_adapter(name)]
    if strange:
        raise ExportError(f"{reader.folder} holds {strange[:3]}, which are not adapters")
    return {n.replace(".default.", "."): reader.whole(n, part).to(dtype) for n in names}


def _write_peft(material: Material, tensors: dict[str, Tensor], folder: Path) -> None:
    config = peft.LoraConfig(
        base_model_name_or_path=material.base.name,
        revision=material.base.revision,
        inference_mode=True,
        **lora_settings(material),
    )
    # peft makes a set of it, whose order would differ from one export to the next.
    config.target_modules = lora_settings(material)["target_modules"]
    config.save_pretrained(str(folder))
    headers = [TensorHeader(_PEFT_PREFIX + n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    with TensorFileWriter(folder / PEFT_FILE, headers, {"format": "pt"}) as file:
        for tensor in tensors.values():
            file.write(tensor)
        file.finish()


def lora_settings(material: Material) -> dict[str, Any]:
    """What a LoraConfig needs, and nothing that an older peft does not know."""
    lora, spec = material.reader.manifest.document["lora"], material.spec
    assert spec.lora is not None
    alpha = lora["alpha"]
    return {
        "r": lora["rank"],
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "target_modules": sorted(spec.lora.targets or spec.lora_targets),
    }


def _write_diffusers(material: Material, tensors: dict[str, Tensor], folder: Path) -> None:
    pipeline, part = getattr(diffusers, material.target.pipeline), material.target.component
    layers = {f"{part}_lora_layers": tensors}
    metadata = {f"{part}_lora_adapter_metadata": lora_settings(material)}
    pipeline.save_lora_weights(folder, weight_name=DIFFUSERS_FILE, **layers, **metadata)
    # safetensors writes through a private temporary file: nobody else could read this one.
    shutil.copymode(folder / PEFT_FILE, folder / DIFFUSERS_FILE)


def _facts(path: Path) -> FileFacts:
    return FileFacts(path.name, path.stat().st_size, file_sha256(path))
