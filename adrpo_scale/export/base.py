"""Types of an export: the request, its material, the written files, and the library's layout.

    adapter   the trained LoRA alone: a peft folder, and the LoRA file of the base's own library
    merged    the base model with W + alpha/rank · B @ A in place of every adapted W
    full      the base model with the parameters of full training in place of its own
    whole     everything that the base's folder holds, with the trained model (LoRA or full) put
              back into it; only where the folder holds more than the model

An export is written to `<to>.tmp` and renamed at its end, so a kill leaves no half folder; one
whose verification did not succeed is kept as `<to>.unverified`.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adrpo_scale.checkpoint.named import EVALUATED
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.domains.logprobs import ranges
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.export.stored import StoredTensors

Form = Literal["adapter", "merged", "full", "whole"]
Level = Literal["outputs", "tensors", "none"]
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


@dataclass(frozen=True)
class Request:
    """A requested export. weights: a word of `named.WEIGHTS`. dtype: None for float32 (adapter), or
    for the base's own type of each tensor (other forms). max_shard_bytes: largest size of one
    weight file. link: hard links instead of copies of the base's other files. recheck: verify the
    unverified export beside `to` instead of exporting."""

    to: Path
    form: Form
    weights: str = EVALUATED
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9
    verify: Level = "outputs"
    link: bool = False
    recheck: bool = False


def parse_request(
    to: Path,
    form: str,
    weights: str,
    dtype: str | None,
    max_shard_size: str,
    verify: str,
    link: bool,
    recheck: bool = False,
) -> Request:
    """The Request of a command line. Raises ExportError for an unknown form, type or level."""
    check_word("--as", form, get_args(Form))
    check_word("--verify", verify, get_args(Level))
    if dtype is not None:
        check_word("--dtype", dtype, DTYPES)
    if recheck and verify == "none":
        raise ExportError("--recheck with --verify none checks nothing: leave one of them out")
    return Request(
        to=to,
        form=form,  # type: ignore[arg-type]
        weights=weights,
        dtype=None if dtype is None else DTYPES[dtype],
        max_shard_bytes=parse_size(max_shard_size),
        verify=verify,  # type: ignore[arg-type]
        link=link,
        recheck=recheck,
    )


def check_word(option: str, word: str, known: Collection[str]) -> None:
    """Raises ExportError unless `word` is one of `known`."""
    if word not in known:
        raise ExportError(f"{option} {word!r}: expected {' or '.join(known)}")


def parse_size(text: str) -> int:
    """Bytes of "5GB" or "500MB": decimal units, as on the hub. Raises ExportError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ExportError(f"--max-shard-size {text!r}: expected a size as in 5GB or 500MB")
    return size


@dataclass(frozen=True)
class Base:
    """The model that was trained, without any path. name: hub id, or the last part of a folder's
    path."""

    name: str
    is_hub_id: bool
    revision: str | None
    sha256: str


def base_of(model: str, revision: str | None, sha256: str) -> Base:
    """The Base of a run. model: the run's `domain.model`. revision: known for models of the hub's
    cache."""
    cached = _HUB_CACHE.search(model)
    if cached:
        return Base(f"{cached[1]}/{cached[2]}", True, revision, sha256)
    if revision is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return Base(model, True, revision, sha256)
    return Base(last_name(model), False, revision, sha256)


def last_name(path: str) -> str:
    """The last part of a path: all of it that may be published."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@dataclass(frozen=True)
class Material:
    """The inputs of an export.

    reader: the checkpoint, its hashes verified. part: the exported set, `policy` or `ema`.
    spec: the policy; `spec.weights` are the weights that training started from: other ones than
    `stored` where the reference was rebased on a fork's origin. stored: the base's tensors that a
    complete export holds, as they are on the disk. folder: that of the base's pipeline or model.
    """

    reader: Reader
    part: str
    spec: ModelSpec
    target: ExportTarget
    stored: StoredTensors
    folder: Path
    base: Base

    @property
    def scaling(self) -> float:
        """alpha / rank of the checkpoint's adapters."""
        lora = self.reader.manifest.document["lora"]
        return lora["alpha"] / lora["rank"]

    def factor(self, name: str) -> float:
        """The factor that an exported adapter's tensor has beyond the trained one's. It goes to B;
        below 1 to A, whose values are larger: float16 would lose digits of a small B."""
        place = ".lora_B." if self.scaling >= 1 else ".lora_A."
        return self.scaling if place in name else 1.0

    def dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        """The exported type of a tensor, by its stored name; for all forms but adapter. Tensors
        that are not the policy's keep their own type."""
        own, is_policy = self.stored.dtype(name), name in self.stored.policy_names
        return wanted if wanted is not None and is_policy and own.is_floating_point else own

    def close(self) -> None:
        """Closes mapped files: their pages count as this process's memory."""
        self.spec.weights.close()
        self.stored.close()
        self.reader.close()


@dataclass(frozen=True)
class Written:
    """The weights of a written export. files: by path inside the export. trained: number of the
    base's tensors that were trained; changed: number of those that differ from the base's in the
    export, after rounding."""

    files: Mapping[str, FileFacts]
    trained: int
    changed: int

    @property
    def bytes(self) -> int:
        return sum(facts.bytes for facts in self.files.values())


def check_changed(written: Written, dtype: torch.dtype | None) -> None:
    """Raises ExportError where no trained tensor differs from the base model's."""
    if not written.changed:
        which = "this type" if dtype is None else str(dtype).removeprefix("torch.")
        raise ExportError(
            f"none of the {written.trained} trained tensors differs from the base model's in "
            f"{which}: the export would be the base model itself. Training has moved them by less "
            "than the rounding to this type: use --dtype float32, or train longer"
        )


@dataclass(frozen=True)
class Copy:
    """A file of the base's folder. name: its path in the export, the same as in the base."""

    source: Path
    name: str


@dataclass(frozen=True)
class Use:
    """The facts that a card's examples depend on. dtype: the type of training, e.g. "bfloat16"."""

    form: Form
    base: Base
    target: ExportTarget
    dtype: str
    rank: int | None


class Layout(ABC):
    """The parts of an export that depend on the library that loads it: files beside the trained
    weights, further checks in the second process, and text of the card."""

    peft_settings: Mapping[str, Any] = {}  # of adapter_config.json, beside rank, alpha and targets

    def check(self, material: Material, form: Form) -> None:
        """Raises ExportError where the library would load another model from this export."""
        return None

    @abstractmethod
    def copies(self, material: Material, form: Form) -> list[Copy]:
        """Files that are copied from the base, weights of other components included."""

    def texts(self, material: Material, request: Request) -> dict[str, str]:
        """Texts of files by path; they replace copies of the same name."""
        return {}

    def write_adapters(
        self,
        material: Material,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        folder: Path,
    ) -> list[str]:
        """Writes the adapters once more, in the library's own format; returns the files' names.
        settings: rank, alpha and targets, as a LoraConfig takes them."""
        return []

    def trained_name(self, name: str, target: ExportTarget) -> str:
        """The name in the policy of an adapter's tensor in one of the export's files."""
        return name.removeprefix("base_model.model.").removeprefix(f"{target.component}.")

    def job(self, target: ExportTarget, form: Form) -> dict[str, Any]:
        """Entries of the job for `load_check.py` that add to, or override, those of every
        export."""
        return {}

    def check_answer(self, target: ExportTarget, answer: Mapping[str, Any]) -> None:
        """Raises ExportError where a further result of `load_check.py` is wrong."""
        return None

    def further_errors(
        self, model: Any, inputs: Mapping[str, Tensor], answer: Mapping[str, Any]
    ) -> dict[str, float]:
        """Errors of the further results, by name, as shares of the outputs' root mean square.
        model: the policy, rounded as the export is; inputs: its keyword arguments."""
        return {}

    @abstractmethod
    def summary(self, form: Form, target: ExportTarget) -> str:
        """A noun phrase for the export: the card's first sentence begins with it."""

    @abstractmethod
    def usage(self, use: Use) -> list[str]:
        """Markdown blocks: text, and Python that runs unchanged inside the export's folder."""


def code_block(lines: Sequence[str], language: str = "python") -> str:
    """A fenced code block of Markdown."""
    return f"```{language}\n" + "\n".join(lines) + "\n```"


def value_text(value: Any) -> str:
    """A value in Python, long lists of numbers by their ranges."""
    if not (isinstance(value, list) and len(value) > 8):
        return repr(value)
    parts = (str(a) if a == b else f"*range({a}, {b + 1})" for a, b in ranges(value))
    return f"[{', '.join(parts)}]"


def base_lines(base: Base) -> list[str]:
    """Lines of Python that set `base`, the name of the base model."""
    remark = "" if base.is_hub_id else "  # the folder of the base model"
    return [f"base = {json.dumps(base.name.removeprefix('demo:'))}{remark}"]


def base_arguments(base: Base) -> str:
    """Arguments of `from_pretrained` for the base model, after `base_lines`."""
    revision = base.revision if base.is_hub_id else None
    return f"base, revision={json.dumps(revision)}" if revision else "base"
