"""Objects as bytes that can hold data and nothing else: what ranks send to each other.

A pickle may name any function to be called where it is read, and torch's object collectives read
whatever arrives at an open port. Here a reader builds containers, numbers, text, paths, dates,
arrays, tensors, errors, and the data classes of this package or of a component of one's own; any
other name ends the message before anything of it is called. Classes and floats arrive as they are.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import io
import pickle
import sys
from enum import Enum
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from adrpo_scale.core.errors import AdrpoError

OURS = __name__.partition(".")[0]
_trusted = {"__main__"}  # top packages of a user's own components: a config that names one is code
_DATA = {
    "builtins": {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list"),
        *("range", "set", "slice", "str", "tuple"),
    },
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.numeric": {"_frombuffer"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePath", "PurePosixPath"},
    "PIL.Image": {"Image"},
    "torch": {"Size", "device"},
    "types": {"SimpleNamespace"},
}
_KINDS: tuple[tuple[str, Any, type], ...] = (
    ("builtins", builtins, Exception),
    ("numpy", np, np.generic),
    ("numpy.dtypes", np.dtypes, np.dtype),
)


def trust(module: str) -> None:
    """Lets the classes of a module's top package travel; it has been imported by a config. Those of
    this package have their own rule, also where a config names one by its path."""
    top = module.partition(".")[0]
    if top != OURS:
        _trusted.add(top)
        is_data.cache_clear()


def packed(value: Any) -> bytes:
    """A value as bytes. One that cannot travel becomes a message that says so: all ranks then raise
    the same error, where this rank alone would leave the others waiting."""
    try:
        return _dumped(value)
    except Exception as error:  # of any __reduce__
        return _dumped(_Unsendable(f"{error}"))


def unpacked(data: bytes) -> Any:
    """The value. Raises RuntimeError where the sender could not send it, or the bytes name anything
    but data."""
    try:
        value = _Reader(io.BytesIO(data)).load()
    except Exception as error:  # of bytes that nobody here has written
        raise RuntimeError(f"another rank sent what is no message of this package: {error}") from (
            error
        )
    if isinstance(value, _Unsendable):
        raise RuntimeError(
            f"a rank cannot send this to the others ({value.why}); expected plain data, arrays, "
            "tensors, or data classes of this package or of your own component's"
        )
    return value


@dataclasses.dataclass(frozen=True)
class _Unsendable:
    why: str


def _dumped(value: Any) -> bytes:
    to = io.BytesIO()
    _Writer(to, protocol=5).dump(value)
    return to.getvalue()


class _Writer(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """How objects travel whose own way is none here: tensors, and errors of other packages."""
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            data = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
            return _tensor, (plain.dtype, tuple(plain.shape), data)
        if isinstance(value, torch.dtype):
            return _dtype, (str(value),)
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            kind: Any = value
        else:
            kind = type(value)
        if is_data(kind.__module__, kind.__qualname__):
            return NotImplemented
        if isinstance(value, AdrpoError):
            known = next(c for c in kind.__mro__ if is_data(c.__module__, c.__qualname__))
            return known, (str(value),)
        raise pickle.PicklingError(f"{kind.__module__}.{kind.__qualname__} is no data")


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not is_data(module, name):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _resolved(module, name)


def _tensor(dtype: torch.dtype, shape: tuple[int, ...], data: bytes) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).clone().reshape(shape)  # aligned


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name.removeprefix("torch."))
    if not isinstance(found, torch.dtype):
        raise TypeError(f"{name} is no type of a tensor")
    return found


@functools.cache
def is_data(module: str, name: str) -> bool:
    """Whether a name is that of a class whose objects are data."""
    if name in _DATA.get(module, ()):
        return True
    top = module.partition(".")[0]
    for own, of, base in _KINDS:
        if module == own:
            found = getattr(of, name, None)
            return isinstance(found, type) and issubclass(found, base)
    if module == __name__ and name in (_tensor.__name__, _dtype.__name__):
        return True
    if top != OURS and top not in _trusted:
        return False
    found = _resolved(module, name)
    if not isinstance(found, type) or found.__module__ != module:
        return False
    return top in _trusted or _holds_data(found)


def _holds_data(kind: type) -> bool:
    """Of a class of this package: whether building one calls nothing but its own fields."""
    is_record = dataclasses.is_dataclass(kind) and not hasattr(kind, "__post_init__")
    is_named = issubclass(kind, tuple) and hasattr(kind, "_fields")
    is_given = "__reduce__" in vars(kind)  # it says itself how it travels
    return is_record or is_named or is_given or issubclass(kind, Exception | Enum | BaseModel)


def _resolved(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module) or __import__(module, fromlist=["_"])
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
