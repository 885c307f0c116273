"""Adapters on a published pipeline: a LoRA in diffusers' layout or in peft's.

Libraries only warn of adapters whose names match nothing, and then paint with the base. Here names
and shapes are compared with the base's before its weights are read.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from adrpo_scale.core.errors import ConfigError, WeightsError
from adrpo_scale.core.paths import usual_path
from adrpo_scale.evaluation.peft_adapters import FILE as PEFT_FILE
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weight_files import ADAPTER
from adrpo_scale.hub.weights import combined_sha256, find_model, revision_of

LORA_FILE = "pytorch_lora_weights.safetensors"
_PEFT_PREFIX = "base_model.model."
# "transformer.blocks.0.attn.to_q.lora_A.weight", "unet.….lora.down.weight"
_LAYER = re.compile(r"(?P<layer>.+?)\.(?:lora_(?P<AB>[AB])|lora[_.](?P<way>down|up))\b.*")
_KINDS = {"A": "A", "down": "A", "B": "B", "up": "B"}


@dataclass(frozen=True)
class Adapters:
    """A LoRA. name: as it was named. file: its weights. is_peft: in peft's layout, whose names have
    no component. body: the component that it is for."""

    name: str
    file: Path
    is_peft: bool
    body: str

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "revision": revision_of(self.file.parent),
            "sha256": combined_sha256([self.file], self.file.parent),
        }


def find_adapters(need: HubNeed, body: str) -> Adapters:
    """The LoRA of a folder, a file or a hub id. A folder with both layouts is read in diffusers'.
    Raises ConfigError where there is none in safetensors."""
    path = usual_path(need.name)
    if path.is_file() and path.suffix == ".safetensors":
        return Adapters(need.name, path, False, body)
    folder = find_model(need)
    if (folder / LORA_FILE).is_file():
        return Adapters(need.name, folder / LORA_FILE, False, body)
    if (folder / ADAPTER).is_file() and (folder / PEFT_FILE).is_file():
        return Adapters(need.name, folder / PEFT_FILE, True, body)
    others = sorted(folder.glob("*.safetensors"))
    if len(others) != 1:
        names = ", ".join(path.name for path in others[:4]) or "no safetensors"
        raise ConfigError(
            f"lora = {need.name!r}: {folder} holds {names}; expected {LORA_FILE}, {PEFT_FILE} with "
            f"{ADAPTER}, or one .safetensors file: name the file itself"
        )
    return Adapters(need.name, others[0], False, body)


def check_adapters(adapters: Adapters, skeleton: Any) -> None:
    """Raises WeightsError unless every adapter has its layer in the base, of its shape. skeleton:
    the pipeline without weights; adapters of its text encoders are left to the loader."""
    with loading(adapters.file.parent, "adapters"):
        tensors = _tensors(adapters, skeleton)
    if adapters.is_peft:
        _peft_settings(adapters)
    encoders = [name for name in tensors if name.startswith("text_encoder")]
    prefix = f"{adapters.body}."
    mine = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    modules = dict(getattr(skeleton, adapters.body).named_modules())
    layers = {found["layer"] for found in map(_LAYER.fullmatch, mine) if found}
    where = f"lora = {adapters.name!r}: {adapters.file.name}"
    base = type(getattr(skeleton, adapters.body)).__name__
    if not layers and not encoders:
        first = min(tensors, default="nothing")
        raise WeightsError(
            f"{where} has no adapters of the {adapters.body} ({base}) of this pipeline: it holds "
            f"{first} first; name a LoRA that was trained on this model"
        )
    strange = sorted(layers - modules.keys())
    if strange:
        raise WeightsError(
            f"{where}: {len(strange)} of {len(layers)} layers are not in {base}, {strange[0]} "
            "first; name a LoRA that was trained on this model"
        )
    for line in _unlike_shapes(mine, modules):
        raise WeightsError(f"{where}: {line}; name a LoRA that was trained on this model")


def add_adapters(adapters: Adapters, pipeline: Any) -> None:
    """Loads the adapters onto a pipeline with its weights. Raises WeightsError where no layer of
    any of its models has got one."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    folder, model = adapters.file.parent, getattr(pipeline, adapters.body)
    with loading(folder, "adapters"), _without_warnings():
        if adapters.is_peft:
            model.load_lora_adapter(
                _peft_tensors(adapters), prefix=None, metadata=_peft_settings(adapters)
            )
        else:
            pipeline.load_lora_weights(
                folder,
                weight_name=adapters.file.name,
                local_files_only=True,
                use_safetensors=True,
            )
    models = [each for each in pipeline.components.values() if isinstance(each, nn.Module)]
    if not any(isinstance(module, BaseTunerLayer) for each in models for module in each.modules()):
        raise WeightsError(
            f"lora = {adapters.name!r}: diffusers has given no layer of {type(pipeline).__name__} "
            f"an adapter of {adapters.file.name}; name a LoRA that was trained on this model"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """A context in which diffusers does not warn that a text encoder gets no adapters."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _tensors(adapters: Adapters, skeleton: Any) -> Mapping[str, Tensor]:
    """The adapters by diffusers' names, as the family's own loader translates them."""
    if adapters.is_peft:
        return {f"{adapters.body}.{n}": t for n, t in _peft_tensors(adapters).items()}
    read = getattr(skeleton, "lora_state_dict", None)
    if read is None:
        raise ConfigError(
            f"lora = {adapters.name!r}: {type(skeleton).__name__} loads no LoRA; leave lora out"
        )
    more = {"unet_config": skeleton.unet.config} if adapters.body == "unet" else {}
    found = read(
        adapters.file.parent,
        weight_name=adapters.file.name,
        local_files_only=True,
        use_safetensors=True,
        **more,
    )
    tensors: Mapping[str, Tensor] = found[0] if isinstance(found, tuple) else found
    return tensors


def _peft_tensors(adapters: Adapters) -> dict[str, Tensor]:
    """The tensors of peft's file by their names in the model."""
    return {n.removeprefix(_PEFT_PREFIX): t for n, t in load_file(adapters.file).items()}


def _peft_settings(adapters: Adapters) -> dict[str, Any]:
    """The settings of peft's adapters. Raises WeightsError for adapters of another kind than LoRA,
    and for a setting that the installed peft does not know and that changes something."""
    from peft import LoraConfig

    stated = read_json(adapters.file.parent / ADAPTER)
    kind, where = stated.pop("peft_type", None), f"lora = {adapters.name!r}: {ADAPTER} states"
    if kind != "LORA":
        raise WeightsError(f"{where} peft_type = {kind!r}; expected LORA")
    known = inspect.signature(LoraConfig).parameters
    for key, value in stated.items():
        if key not in known and value not in (None, False, [], {}):
            raise WeightsError(
                f"{where} {key} = {value!r}, which the installed peft does not know: install the "
                f"version that wrote it ({stated.get('peft_version', 'a newer one')})"
            )
    return {key: value for key, value in stated.items() if key in known}


def _unlike_shapes(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module]
) -> Iterable[str]:
    """A line for each adapter that does not fit its linear layer."""
    for name, tensor in tensors.items():
        found = _LAYER.fullmatch(name)
        module = modules.get(found["layer"]) if found else None
        if found is None or not isinstance(module, nn.Linear) or tensor.ndim != 2:
            continue
        kind = _KINDS[found["AB"] or found["way"]]
        is_down = kind == "A"
        own, wanted = tensor.shape[is_down], module.in_features if is_down else module.out_features
        if own != wanted:
            side = "inputs" if is_down else "outputs"
            yield f"{name} has {own} {side}, and the layer of this model {wanted}"
