"""A complete pipeline folder: trained weights streamed tensor by tensor, the rest from the base.

Weight files are cut and named as diffusers and huggingface_hub do it. Nothing is ever in memory
whole, and files are let go of while they are read: mapped pages count as this process's memory.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from adrpo_scale.errors import ExportError
from adrpo_scale.export.base import Material, Request, Written, check_changed, last_name
from adrpo_scale.merged import MergedWeights
from adrpo_scale.tensor_files import FileFacts, TensorFileWriter, TensorHeader

HELD = 64 << 20  # bytes read before the files are let go of
INDEX = "model_index.json"
LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_KEPT = {".json", ".txt", ".model", ".jinja", ".safetensors", ".md"}
_CONTENT = {"tokenizer.json", "vocab.json", "special_tokens_map.json", "added_tokens.json"}


@dataclass(frozen=True)
class Copy:
    """A file of the base's pipeline. name: its path in the export, the same as in the base."""

    source: Path
    name: str


def weight_headers(material: Material, dtype: torch.dtype | None) -> list[TensorHeader]:
    """Every tensor of the exported component, from the base's headers alone."""
    stored = material.stored
    names = sorted(stored.names())
    headers = [TensorHeader(n, material.dtype(n, dtype), stored.shape(n)) for n in names]
    material.close()
    return headers


def write_weights(material: Material, request: Request, folder: Path) -> Written:
    """The trained component's weight files and their index, into `folder`/component.

    ExportError where no trained tensor differs from the base's in the type that it is written in,
    or where a number does not fit that type. OSError as the disk does.
    """
    target, headers = material.target, weight_headers(material, request.dtype)
    split = split_state_dict_into_shards_factory(
        {header.name: header for header in headers},
        get_storage_size=lambda header: header.bytes,
        filename_pattern=f"{target.stem}{{suffix}}.safetensors",
        max_shard_size=request.max_shard_bytes,
    )
    by_name = {header.name: header for header in headers}
    part = folder / target.component
    part.mkdir(parents=True, exist_ok=True)
    stream, files = _Stream(material), {}
    for file_name, names in split.filename_to_tensors.items():
        facts = _write_shard(part / file_name, [by_name[name] for name in names], stream)
        files[f"{target.component}/{file_name}"] = facts
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(part / f"{target.stem}.safetensors.index.json", index)
    written = Written(files, stream.trained, stream.changed)
    check_changed(written, request.dtype)
    return written


def _write_shard(path: Path, headers: list[TensorHeader], stream: _Stream) -> FileFacts:
    with TensorFileWriter(path, headers, {"format": "pt"}) as file:
        for header in headers:
            file.write(stream.read(header))
        return file.finish()


class _Stream:
    """Tensors as they are to be written, counting which of the trained ones differ."""

    def __init__(self, material: Material) -> None:
        self._reference = material.spec.weights
        self._weights = MergedWeights(self._reference, material.reader, material.part)
        self._held = 0
        self.trained = self.changed = 0

    def read(self, header: TensorHeader) -> Tensor:
        """One tensor. ExportError where its values do not fit the type."""
        if self._held > HELD:
            self._weights.close()
            self._held = 0
        self._held += header.bytes
        tensor = self._weights.read(header.name)
        result = tensor.to(header.dtype)
        if self._weights.is_trained(header.name):
            before = self._reference.read(header.name).to(header.dtype)
            self.trained += 1
            self.changed += not torch.equal(result, before)
        if header.dtype == torch.float16 and not bool(torch.isfinite(result).all()):
            largest = float(tensor.abs().max())
            raise ExportError(
                f"{header.name} has values up to {largest:.3g}, float16 ends at 65504; use "
                "--dtype bfloat16 or float32"
            )
        return result


def other_files(material: Material) -> list[Copy]:
    """What the base's pipeline has beside the trained weights and belongs into a complete folder.

    Components that model_index.json names, licences; no pickles, no other variants of weights.
    ExportError where a component has its weights as pickles alone.
    """
    base, target = material.folder, material.target
    index = json.loads((base / INDEX).read_text())
    found = [Copy(base / INDEX, INDEX), *licence_files(base)]
    for part in sorted(name for name, value in index.items() if isinstance(value, list)):
        if not (base / part).is_dir():
            continue
        files = sorted(path for path in (base / part).rglob("*") if path.is_file())
        kept = [path for path in files if _is_kept(path)]
        if part == target.component:
            kept = [path for path in kept if ".safetensors" not in path.name]
        elif _has_pickles(files) and not any(path.suffix == ".safetensors" for path in kept):
            raise ExportError(
                f"{base / part} has its weights as pickles alone, which are not copied; bring the "
                "variant of the base model that has safetensors"
            )
        found += [Copy(path, path.relative_to(base).as_posix()) for path in kept]
    return found


def licence_files(base: Path) -> list[Copy]:
    """An export is a derivative of the base: the licence's text goes with it."""
    paths = sorted(path for path in base.iterdir() if path.name.upper().startswith(LICENCES))
    return [Copy(path, path.name) for path in paths if path.is_file()]


def _is_kept(path: Path) -> bool:
    """Configs, tokenizers, and weights that `from_pretrained` reads when asked for no variant."""
    if path.name.startswith(".") or path.suffix not in _KEPT:
        return False
    if path.suffix == ".safetensors":
        return "." not in path.stem  # model.fp16.safetensors is a variant
    return ".index." not in path.name or path.name.endswith(".safetensors.index.json")


def _has_pickles(files: list[Path]) -> bool:
    return any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in files)


def bytes_of(copies: list[Copy]) -> int:
    return sum(copy.source.stat().st_size for copy in copies)


def write_copies(copies: list[Copy], folder: Path, link: bool) -> None:
    """Copies the files, or links those that stay as they are. JSON loses its absolute paths."""
    for copy in copies:
        to = folder / copy.name
        to.parent.mkdir(parents=True, exist_ok=True)
        if to.suffix == ".json" and to.name not in _CONTENT:
            text = copy.source.read_text()
            clean = without_paths(json.loads(text))
            if clean != json.loads(text):
                _write_json(to, clean)
                continue
        _place(copy.source.resolve(), to, link)


def _place(source: Path, to: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, to)
            return
        except OSError:
            pass  # another filesystem
    shutil.copyfile(source, to)


def without_paths(value: Any) -> Any:
    """A JSON value whose strings that are absolute paths are cut down to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    return last_name(value) if isinstance(value, str) and is_path(value) else value


def is_path(text: str) -> bool:
    """Whether a string is a path that says something about the machine: absolute, or from home."""
    if len(text) > 4096 or "\n" in text or "://" in text:
        return False
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    absolute = posix.is_absolute() and len(posix.parts) > 2
    return absolute or text.startswith(("~/", "../")) or bool(windows.drive and windows.root)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
