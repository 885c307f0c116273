"""What an export is asked to be, what it is made from, and what was written.

    adapter   the trained LoRA alone: a peft folder, with what else the base's library wants of it
    merged    the base model with W + alpha/rank · B @ A in place of every adapted W
    full      the base model with the parameters of full training in place of its own
    whole     everything that the base's folder holds, with the trained model put back into it,
              however it was trained; where the folder holds more than the model

An export is written to `<to>.tmp` and renamed at its end, so a killed one leaves no half folder.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core.errors import ExportError
from adrpo_scale.core.tensor_files import FileFacts
from adrpo_scale.domains.export_target import ExportTarget
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
    """What is wanted. dtype: None for float32 (adapter), or the base's own, tensor by tensor
    (any other). max_shard_bytes: of one weight file. link: hard links instead of copies of what
    the base has beside the trained weights."""

    to: Path
    form: Form
    ema: bool = False
    dtype: torch.dtype | None = None
    max_shard_bytes: int = 5 * 10**9
    verify: Level = "outputs"
    link: bool = False


def parse_request(
    to: Path, form: str, ema: bool, dtype: str | None, max_shard_size: str, verify: str, link: bool
) -> Request:
    """A Request from what the command line says. ExportError for a word that is not known."""
    check_word("--as", form, get_args(Form))
    check_word("--verify", verify, get_args(Level))
    if dtype is not None:
        check_word("--dtype", dtype, DTYPES)
    return Request(
        to=to,
        form=form,  # type: ignore[arg-type]
        ema=ema,
        dtype=None if dtype is None else DTYPES[dtype],
        max_shard_bytes=parse_size(max_shard_size),
        verify=verify,  # type: ignore[arg-type]
        link=link,
    )


def check_word(option: str, word: str, known: object) -> None:
    assert isinstance(known, tuple | dict)
    if word not in known:
        raise ExportError(f"{option} {word!r}: expected {' or '.join(known)}")


def parse_size(text: str) -> int:
    """Bytes of "5GB" or "500MB": decimal, as on the hub."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]B)", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size <= 0:
        raise ExportError(f"--max-shard-size {text!r}: expected a size as in 5GB or 500MB")
    return size


@dataclass(frozen=True)
class Base:
    """Which model was trained, without any path. name: hub id, or the last name of a folder."""

    name: str
    is_hub_id: bool
    revision: str | None
    sha256: str


def base_of(model: str, revision: str | None, sha256: str) -> Base:
    """model: `domain.model` as the run had it. revision: known for models of the hub's cache."""
    cached = _HUB_CACHE.search(model)
    if cached:
        return Base(f"{cached[1]}/{cached[2]}", True, revision, sha256)
    if revision is not None and re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return Base(model, True, revision, sha256)
    return Base(last_name(model), False, revision, sha256)


def last_name(path: str) -> str:
    """What of a path may be told to strangers: its last part."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


@dataclass(frozen=True)
class Material:
    """What an export is made from.

    reader: the checkpoint, its hashes verified. part: the set of it, `policy` or `ema`.
    spec: the policy; `spec.weights` are those that training started from, and are not `stored`
    where the run's reference was rebased on a fork's origin. stored: the base's tensors that a
    complete export holds, as they lie on the disk. folder: of the base's pipeline or model.
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

    def dtype(self, name: str, wanted: torch.dtype | None) -> torch.dtype:
        """Of one of the base's tensors, by its stored name, in any export but an adapter. What the
        policy does without is copied as it is."""
        own, is_policy = self.stored.dtype(name), name in self.stored.policy_names
        return wanted if wanted is not None and is_policy and own.is_floating_point else own

    def close(self) -> None:
        """Lets go of mapped files: their pages count as this process's memory."""
        self.spec.weights.close()
        self.stored.close()
        self.reader.close()


@dataclass(frozen=True)
class Written:
    """files: the weight files, by path inside the export. trained: how many of the base's tensors
    training changes; changed: how many of them still differ from the base's in the export."""

    files: Mapping[str, FileFacts]
    trained: int
    changed: int

    @property
    def bytes(self) -> int:
        return sum(facts.bytes for facts in self.files.values())


def check_changed(written: Written, dtype: torch.dtype | None) -> None:
    """Raises ExportError where the export is the base model."""
    if not written.changed:
        which = "this type" if dtype is None else str(dtype).removeprefix("torch.")
        raise ExportError(
            f"none of the {written.trained} trained tensors differs from the base model's in "
            f"{which}: the export would be the base model itself. Training has moved them by less "
            "than their rounding: use --dtype float32, or train longer"
        )


@dataclass(frozen=True)
class Copy:
    """A file of the base's folder. name: its path in the export, the same as in the base."""

    source: Path
    name: str


@dataclass(frozen=True)
class Use:
    """What a card's examples depend on. dtype: torch's name of the type that training ran in."""

    form: Form
    base: Base
    target: ExportTarget
    dtype: str
    rank: int | None


class Layout(ABC):
    """What of an export depends on the library that loads it: the files beside the trained weights,
    what the second process tries beyond the outputs, and the words of the card."""

    peft_settings: Mapping[str, Any] = {}  # of adapter_config.json, beside rank, alpha and targets

    def check(self, material: Material, form: Form) -> None:
        """Raises ExportError where such an export of this base would be another model."""
        return None

    @abstractmethod
    def copies(self, material: Material, form: Form) -> list[Copy]:
        """What the export takes over from the base, weights of other components included."""

    def texts(self, material: Material, request: Request) -> dict[str, str]:
        """Files with a text of their own, by path; they stand in for copies of that name."""
        return {}

    def write_adapters(
        self,
        material: Material,
        tensors: Mapping[str, Tensor],
        settings: Mapping[str, Any],
        folder: Path,
    ) -> list[str]:
        """Writes the adapters once more, as the library's own file; the names of such files.
        settings: rank, alpha and targets, as a LoraConfig takes them."""
        return []

    def job(self, target: ExportTarget, form: Form) -> dict[str, Any]:
        """What `load_check.py` must know of the target, beside what every export has; or instead
        of it."""
        return {}

    def check_answer(self, target: ExportTarget, answer: Mapping[str, Any]) -> None:
        """Raises ExportError where something else that `load_check.py` tried is wrong."""
        return None

    def further_errors(
        self, model: Any, inputs: Mapping[str, Tensor], answer: Mapping[str, Any]
    ) -> dict[str, float]:
        """Errors of what else it tried, as shares of the outputs' root mean square, by name.
        model: the policy, rounded as the export is; inputs: what it is given."""
        return {}

    @abstractmethod
    def summary(self, form: Form, target: ExportTarget) -> str:
        """What the export is, as the beginning of a sentence."""

    @abstractmethod
    def usage(self, use: Use) -> list[str]:
        """Markdown: Python that runs as it stands inside the export's folder, and words."""


def code_block(lines: Sequence[str], language: str = "python") -> str:
    """Markdown."""
    return f"```{language}\n" + "\n".join(lines) + "\n```"


def base_lines(base: Base) -> list[str]:
    """Python that names the base model for the lines after it."""
    remark = "" if base.is_hub_id else "  # the folder of the base model"
    return [f"base = {json.dumps(base.name.removeprefix('demo:'))}{remark}"]


def base_arguments(base: Base) -> str:
    """Of `from_pretrained`, after `base_lines`."""
    revision = base.revision if base.is_hub_id else None
    return f'base, revision="{revision}"' if revision else "base"
