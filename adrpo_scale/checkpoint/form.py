"""The form of `manifest.json`: every field that a reader relies on, with its type and bounds.

A checkpoint may be older than this code, which then takes the default of a field, or newer, with
fields that it does not know. Whatever else differs makes a manifest one that is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

LARGEST = 512 << 20  # bytes of a manifest; 1000 ranks and 1000 tensors in four sets have 160 MB
_DEEPEST = 64  # levels of tables and lists in a document
_SHOWN = 3  # faults

Count = Annotated[int, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Whole(BaseModel):
    """A table that becomes an object with just these fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _Counters(_Whole):
    iteration: Count
    cursor: Count
    step: Count
    nonfinite_in_a_row: Count = 0
    evaluated: Annotated[int, Field(ge=-1)] = -1
    learned: Count = 0
    idle: Count = 0


class _Statistics(_Whole):
    count: Annotated[int, Field(ge=1)]
    mean: float
    m2: float
    min: float
    max: float


class _Named(_Form):
    name: Text


class _Config(_Form):
    seed: int
    rebase_reference: bool
    algorithm: _Named
    domain: _Named


class _Base(_Form):
    model: Text
    revision: str | None
    sha256: Text
    frozen: str | None = None


class _Lora(_Form):
    rank: Annotated[int, Field(ge=1)]
    alpha: float


class _Origin(_Form):
    run: str
    iteration: Count


class _Document(_Form):
    run: str
    identity: str
    package: str
    world_size: Annotated[int, Field(ge=1)]
    config: _Config
    base: _Base
    rules: dict[str, Any] = {}
    lora: _Lora | None
    prompts: Text
    origin: _Origin | None
    left_out: list[int] = []
    counters: _Counters
    rewards: dict[str, _Statistics]
    optimizer_steps: dict[str, Count]


# Not strict: lists of JSON become tuples. Their parts are strict.
_File = Annotated[tuple[Text, Count, Sha256], Strict(False)]
_Piece = Annotated[tuple[Count, Count, Count], Strict(False)]
_Stored = Annotated[tuple[list[Count], list[_Piece]], Strict(False)]


class _Manifest(_Form):
    version: int
    kind: Literal["full", "weights"]
    iteration: Count
    document: _Document
    files: list[_File]
    sets: dict[str, dict[str, _Stored]]


def check_form(body: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the fields, unless a manifest's body has the form above and
    its parts fit together. The body is parsed JSON."""
    _check_depth(body.get("document"))
    try:
        _Manifest.model_validate(body)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ValueError("; ".join(faults[:_SHOWN]) + more) from None
    _check_parts(body)


def _check_parts(body: Mapping[str, Any]) -> None:
    document, sets = body["document"], body["sets"]
    counted = document["counters"]["iteration"]
    if body["iteration"] != counted:
        raise ValueError(f"iteration {body['iteration']} has the counters of {counted}")
    names = [name for name, _, _ in body["files"]]
    if len(set(names)) < len(names):
        raise ValueError("a file is listed twice")
    if "policy" not in sets:
        raise ValueError("there is no set `policy`")
    without = sets.get("exp_avg", {}).keys() - document["optimizer_steps"].keys()
    if without:
        raise ValueError(f"optimizer_steps lacks {min(without)!r}")


def _check_depth(value: Any, depth: int = 0) -> None:
    """Raises ValueError for a value nested too deeply for the functions that walk through settings,
    and for half a surrogate pair, which no file and no terminal takes."""
    if depth > _DEEPEST:
        raise ValueError(f"the document has more than {_DEEPEST} levels")
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, Mapping):
        for name, part in value.items():
            name.encode()
            _check_depth(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            _check_depth(part, depth + 1)
