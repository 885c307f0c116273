"""The one door between folders of other people and the libraries that load them.

Libraries are given folders of this machine, safetensors alone, and never a model's own code:
without these words they would open a pickle where safetensors are missing, and ask on a terminal
whether to run code that came with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ModelNotFoundError
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weight_files import ADAPTER, EXPLICIT, TRANSFORMERS, weight_files
from adrpo_scale.hub.weights import check_loaded

CONFIG = "config.json"
_IMPLEMENTATION = "_implementation"  # of attention, or of experts
_ADAPTERS = "adapter_model.safetensors"


def load_settings(kind: Any, folder: Path, what: str = CONFIG, **more: Any) -> Any:
    """`kind.from_pretrained(folder)` of a config, tokenizer, processor or pipeline without weights.
    what: a noun for it. Raises DamagedFileError, and ModelNotFoundError where it names code."""
    _check_no_kernels(folder)
    with loading(folder, what):
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **more)


def load_weights(kind: Any, folder: Path, stem: str, **more: Any) -> Any:
    """The model `kind.from_pretrained(folder)`, on the CPU, every weight of it found and finite.

    stem: of the library's weight files. Raises ModelNotFoundError where the folder's weights are
    not in the files that `weight_files` names, DamagedFileError, and WeightsError where the library
    would only warn that it begins weights at random.
    """
    weight_files(folder, stem)
    _check_no_kernels(folder)
    if stem == TRANSFORMERS:
        _check_nothing_instead(folder)
        more["trust_remote_code"] = False
    with loading(folder, "weights"):
        model, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **more,
        )
    check_loaded(model, found, folder)
    return model


def _check_nothing_instead(folder: Path) -> None:
    """Raises ModelNotFoundError where transformers would read other files than `weight_files`."""
    path = folder / CONFIG
    stated = read_json(path).get(EXPLICIT) if path.is_file() else None
    if stated is not None:
        raise ModelNotFoundError(
            f"{path} states {EXPLICIT} = {stated!r}, which transformers reads in place of "
            f"{TRANSFORMERS}.safetensors: give the file that name and delete the key"
        )
    if (folder / ADAPTER).is_file() and not (folder / _ADAPTERS).is_file():
        raise ModelNotFoundError(
            f"{folder} holds {ADAPTER}, whose adapters transformers would read from a pickle; "
            f"expected {_ADAPTERS} beside it: save them as that, or move {ADAPTER} away"
        )


def _check_no_kernels(folder: Path) -> None:
    """Raises ModelNotFoundError where a config names code on the hub, which transformers would
    bring and run in place of its own attention."""
    path = folder / CONFIG
    for key, value in _leaves(read_json(path) if path.is_file() else {}):
        if key.endswith(_IMPLEMENTATION) and "/" in str(value):
            raise ModelNotFoundError(
                f"{path} states {key} = {value!r}, code of a repository, which is never run here: "
                "delete the key"
            )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a JSON document with the keys above them; entries of a list have the list's."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, key if key.endswith(_IMPLEMENTATION) else name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    else:
        yield key, value


@contextmanager
def unasked() -> Iterator[None]:
    """A context in which transformers refuses a model's own code at once, also inside another
    library, instead of asking on the terminal."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before
