"""Opening other people's diffusers pipelines: what a folder says of itself, and then its weights.

A pipeline is first built without weights, from its configs alone. So its class, its own settings,
the size of its latents and the layers that adapters must match are known before anything heavy is
read. Weights are read from safetensors alone; no code that comes with a model is run.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.domains.pipelines import PIPELINE
from adrpo_scale.evaluation.images.models import PipelineModel
from adrpo_scale.hub.foreign import read_json
from adrpo_scale.hub.loaders import load_settings, load_weights
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weight_files import DIFFUSERS, TRANSFORMERS, weight_files
from adrpo_scale.hub.weights import SafetensorsFolder, find_model, revision_of

FILES = (PIPELINE, "*/*", "README.md", "LICENSE*")
# Copies of the same weights in forms that are not read.
UNREAD = ("*.fp16*", "*.bin", "*.bin.index.json", "*.msgpack", "*.onnx*", "*.pb", "*.ckpt", "*.h5")
LORA_FILES = ("*.safetensors", "adapter_config.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ASKED = ("prompt", "num_inference_steps")  # of every pipeline that can be judged
_COMMIT = re.compile(r"[0-9a-f]{40}")


def needs_of(model: PipelineModel) -> list[HubNeed]:
    """What a model reads from the hub; for `prefetch` as for loading. Raises ConfigError for a
    revision that is no commit."""
    if model.revision is not None and not _COMMIT.fullmatch(model.revision):
        raise ConfigError(
            f"revision = {model.revision!r}: expected the 40 hexadecimal digits of a commit, which "
            "the model's page shows under its history; branches and tags move"
        )
    needs = [HubNeed(model.pipeline, "pipeline", FILES, UNREAD, revision=model.revision)]
    if model.lora is not None:
        needs.append(HubNeed(model.lora, "lora", LORA_FILES))
    return needs


@dataclass(frozen=True)
class Opened:
    """A pipeline without its weights. skeleton: the pipeline, whose models have no memory, and no
    text encoders. parts: the models among its components, (class, stem of its files) by name.
    without: components that are left out. parameters: of its call. body: the name of the model that
    paints."""

    folder: Path
    skeleton: Any
    parts: Mapping[str, tuple[Any, str]]
    without: Sequence[str]
    parameters: Mapping[str, inspect.Parameter]
    body: str

    @property
    def model(self) -> Any:
        """The model that paints, without memory."""
        return getattr(self.skeleton, self.body)

    def default(self, name: str) -> Any:
        """The default of an argument of the call; None without such an argument."""
        found = self.parameters.get(name)
        return None if found is None or found.default is inspect.Parameter.empty else found.default

    def stored_dtype(self) -> str:
        """The precision in which the model that paints is stored: one of DTYPES."""
        weights = SafetensorsFolder(self.folder / self.body, DIFFUSERS)
        dtype = weights.dtype(min(weights.names()))
        weights.close()
        return next((name for name, each in DTYPES.items() if each == dtype), "bfloat16")


def open_pipeline(model: PipelineModel) -> Opened:
    """The pipeline of a folder or hub id, without weights. Raises ConfigError for what is no
    pipeline that paints a prompt, ModelNotFoundError and DamagedFileError for what is not whole."""
    need, *_ = needs_of(model)
    folder = find_model(need)
    if not (folder / PIPELINE).is_file():
        raise ConfigError(
            f"pipeline = {model.pipeline!r}: {folder} has no {PIPELINE}; expected a diffusers "
            "pipeline, as `save_pretrained` or `adrpo-scale export` writes it"
        )
    index = read_json(folder / PIPELINE)
    kind = _class_of(index.get("_class_name"), model.pipeline)
    parameters = inspect.signature(kind.__call__).parameters
    lacks = [name for name in _ASKED if name not in parameters]
    if lacks:
        raise ConfigError(
            f"pipeline = {model.pipeline!r}: {kind.__name__} takes no {lacks[0]}; expected a "
            "pipeline that makes pictures of prompts"
        )
    absent = [name for name in model.without if not isinstance(index.get(name), list)]
    if absent:
        known = ", ".join(name for name, entry in index.items() if isinstance(entry, list))
        raise ConfigError(
            f"without = {[*model.without]!r}: {kind.__name__} has no {absent[0]}; it has {known}"
        )
    index = {name: entry for name, entry in index.items() if name not in model.without}
    parts = _models(index, folder)
    body = next((name for name in ("transformer", "unet") if name in parts), None)
    if body is None:
        raise ConfigError(
            f"pipeline = {model.pipeline!r}: {kind.__name__} has neither a transformer nor a unet; "
            "expected a pipeline that makes pictures of prompts"
        )
    for name, (_, stem) in parts.items():
        weight_files(folder / name, stem)
    given = {
        name: _without_memory(part, folder / name) if stem == DIFFUSERS else None
        for name, (part, stem) in parts.items()
    } | dict.fromkeys(model.without)
    skeleton = load_settings(kind, folder, "pipeline", use_safetensors=True, **given)
    return Opened(folder, skeleton, parts, model.without, parameters, body)


def load_pipeline(opened: Opened, dtype: str, device: torch.device) -> Any:
    """The pipeline with its weights, on the device. Raises DamagedFileError, and WeightsError where
    its libraries would begin weights at random."""
    models: dict[str, Any] = {
        name: load_weights(kind, opened.folder / name, stem, dtype=DTYPES[dtype])
        for name, (kind, stem) in opened.parts.items()
    }
    for model in models.values():
        model.requires_grad_(False).eval()
    models |= dict.fromkeys(opened.without)
    kind = type(opened.skeleton)
    more = {"use_safetensors": True, "dtype": DTYPES[dtype]}
    pipeline = load_settings(kind, opened.folder, "pipeline", **models, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def revision_in_use(opened: Opened) -> str | None:
    """The commit of a pipeline from the hub; None for a folder of one's own."""
    return revision_of(opened.folder)


def _class_of(name: Any, pipeline: str) -> Any:
    """The class of that name in diffusers. Raises ConfigError without one."""
    import diffusers

    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline):
        return kind
    known = [each for each in dir(diffusers) if each.endswith("Pipeline")]
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; the nearest that it has is {near[0]}" if near else ""
    raise ConfigError(
        f"pipeline = {pipeline!r}: its {PIPELINE} names the class {name!r}, which diffusers "
        f"{diffusers.__version__} does not have{hint}. Code that comes with a model is never run "
        "here: install a version of diffusers that has the class"
    )


def _models(index: Mapping[str, Any], folder: Path) -> dict[str, tuple[Any, str]]:
    """(class, stem of its weights) of each component with weights that diffusers or transformers
    load, by name. Others (schedulers, tokenizers) are left to the pipeline's own loader."""
    import diffusers
    import transformers

    homes = {
        "diffusers": (diffusers, diffusers.ModelMixin, DIFFUSERS),
        "transformers": (transformers, transformers.PreTrainedModel, TRANSFORMERS),
    }
    found = {}
    for name, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in homes:
            continue
        library, base, stem = homes[entry[0]]
        kind = getattr(library, str(entry[1]), None)
        if kind is None:
            raise ConfigError(
                f"{folder / PIPELINE}: {name} is a {entry[1]}, which {entry[0]} "
                f"{library.__version__} does not have: install a version that has it"
            )
        if isinstance(kind, type) and issubclass(kind, base):
            found[name] = (kind, stem)
    return found


def _without_memory(kind: Any, folder: Path) -> Any:
    """A model of diffusers of the folder's config, whose weights have shapes alone."""
    from accelerate import init_empty_weights

    with loading(folder, "config"), init_empty_weights():
        return kind.from_config(kind.load_config(folder, local_files_only=True))
