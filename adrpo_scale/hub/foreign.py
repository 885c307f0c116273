"""Files that other programs wrote: read so that a damaged one is named, with its remedy.

Downloads that stopped, pointers of Git LFS in place of their files, pages of a proxy, empty files
of a full disk: each parser has its own exception for them, and none names the file. Everything here
raises DamagedFileError instead.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adrpo_scale.core.errors import DamagedFileError
from adrpo_scale.core.secrets import beginning

LFS = b"version https://git-lfs"
LARGEST_HEADER = 100_000_000  # bytes; the library refuses a larger one
COMPARED = 1 << 24  # bytes at once


def check_whole(path: Path) -> None:
    """Raises DamagedFileError for a file of any format that is empty or not the file itself."""
    if diagnosis(path) is not None:
        raise damaged(path, "")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises DamagedFileError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, error) from error
    if not isinstance(content, dict):
        raise damaged(path, f"holds {_kind(content)} where a JSON object is expected")
    return content


def open_tensors(path: Path) -> safe_open:
    """An open safetensors file, whose length fits its header. Raises DamagedFileError."""
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, why: Exception | str) -> DamagedFileError:
    """The error of a file that cannot be read. why: of its parser, for faults not known here."""
    said = diagnosis(path)
    if said is None:
        said = f"is not whole ({first_words(why)})" if isinstance(why, Exception) else why
    return DamagedFileError(f"{path} {said}; {_remedy(path, said)}")


def diagnosis(path: Path) -> str | None:
    """What is wrong with a file, as the end of a sentence; None where nothing of it is known."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        return "is a broken link" if path.is_symlink() else "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not size:
        return "is empty"
    if head.startswith(LFS):
        return "is a pointer of Git LFS, not the file itself"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page, not the file itself"
    if path.suffix == ".safetensors":
        return _cut(path, head, size)
    if not any(head) and path.suffix == ".json":
        return f"holds zeros alone ({size} bytes)"
    return None


def _cut(path: Path, head: bytes, size: int) -> str | None:
    """Of a safetensors file: 8 bytes of the header's length, the header, the tensors."""
    length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else LARGEST_HEADER
    if length > LARGEST_HEADER:
        return None
    with path.open("rb") as file:
        text = file.read(8 + length)[8:]
    if len(text) < length:
        return f"is cut off: it has {size} bytes, its header alone {8 + length}"
    try:
        ends = [facts["data_offsets"][1] for facts in json.loads(text).values() if "dtype" in facts]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None
    whole = 8 + length + max(ends, default=0)
    return f"is cut off: it has {size} of {whole} bytes" if size < whole else None


def _remedy(path: Path, said: str) -> str:
    if "Git LFS" in said:
        return f"run `git lfs pull` in {path.parent}"
    return "delete it and bring it again (`adrpo-scale prefetch CONFIG`, `hf download` or a copy)"


def _kind(content: object) -> str:
    return "null" if content is None else f"a {type(content).__name__}"


def first_words(error: Exception) -> str:
    """The beginning of a library's message, on one line."""
    return beginning(" ".join(str(error).split()), 300) or type(error).__name__


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """True where two tensors on the CPU have the same type, shape and bytes: a NaN is not equal to
    itself as a number. They are compared piece by piece, so that mapped ones need no memory."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    pairs = (t.contiguous().flatten().view(torch.uint8).split(COMPARED) for t in (a, b))
    return all(torch.equal(x, y) for x, y in zip(*pairs, strict=True))
