"""The two files of a peft folder: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from torch import Tensor

from adrpo_scale.core.tensor_files import TensorFileWriter, TensorHeader
from adrpo_scale.export.base import Base

PEFT_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


def write_peft(
    base: Base, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path
) -> None:
    """Writes both files. tensors: by their names in the model. settings: of a LoraConfig."""
    config = peft.LoraConfig(
        base_model_name_or_path=base.name, revision=base.revision, inference_mode=True, **settings
    )
    # peft turns it into a set, whose order differs from one export to the next.
    config.target_modules = settings["target_modules"]
    config.save_pretrained(str(folder))
    headers = [TensorHeader(PEFT_PREFIX + n, t.dtype, tuple(t.shape)) for n, t in tensors.items()]
    with TensorFileWriter(folder / PEFT_FILE, headers, {"format": "pt"}) as file:
        for tensor in tensors.values():
            file.write(tensor)
        file.finish()
