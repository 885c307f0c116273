"""Tensors of the pretended device.

To Python a `DeviceTensor` lies on cuda:N. To C++ it is a CPU tensor with a dispatch of its own: the
autograd engine would ask a CUDA device for its context. Its values lie in `inner`, a CPU tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.pretend_cuda import state

aten = torch.ops.aten


class DeviceTensor(Tensor):
    inner: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, place: torch.device) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="cpu",
        )
        made.inner, made.place = inner, place
        return made

    def __init__(self, inner: Tensor, place: torch.device) -> None:
        pass

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["inner"], self.place

    @staticmethod
    def __tensor_unflatten__(parts: Any, place: Any, size: Any, stride: Any) -> DeviceTensor:
        return DeviceTensor(parts["inner"], place)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from tests.support.pretend_cuda.dispatch import run

        return run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)}, {self.dtype}, {self.place})"

    device = property(lambda self: self.place)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return Tensor.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, DeviceTensor):
            state.now().seen.problem(".data of a device tensor is set to a CPU tensor")
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner  # type: ignore[attr-defined]

    def get_device(self) -> int:
        return self.place.index

    def to(self, *args: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return moved(self, *args, **kwargs)

    def cpu(self, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return moved(self, "cpu")

    def cuda(self, device: Any = None, *_: Any, **__: Any) -> Tensor:  # type: ignore[override]
        return moved(self, "cuda" if device is None else torch.device("cuda", device))

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        options = {"dtype": self.dtype, "device": self.place} | kwargs
        return torch.tensor(data, **options)

    def tolist(self) -> Any:  # C++ refuses subclasses
        state.now().host_waits("tolist")
        return self.inner.detach().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:  # type: ignore[override]
        text = f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first"
        state.now().seen.problem(text)

    __array__ = numpy  # type: ignore[assignment]

    def pin_memory(self, *_: Any, **__: Any) -> Tensor:
        state.now().seen.problem("cannot pin a CUDA tensor; only dense CPU tensors can be pinned")
        raise AssertionError

    def is_pinned(self, *_: Any, **__: Any) -> bool:
        return False

    def record_stream(self, stream: Any) -> None:
        pass


def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, by the devices that Python sees."""
    dtype, device = tensor.dtype, tensor.device
    for asked in (*args, *(kwargs.get(name) for name in ("device", "dtype", "other"))):
        if isinstance(asked, Tensor):
            dtype, device = asked.dtype, asked.device
        elif isinstance(asked, torch.dtype):
            dtype = asked
        elif isinstance(asked, str | torch.device):
            device = torch.device(asked)
        elif isinstance(asked, int) and not isinstance(asked, bool):
            device = torch.device("cuda", asked)
    device = state.now().placed(device)
    if (device, dtype) == (tensor.device, tensor.dtype) and not kwargs.get("copy"):
        return tensor
    options = {"dtype": dtype, "device": device}
    return aten._to_copy.default(
        tensor, **options, non_blocking=bool(kwargs.get("non_blocking", False))
    )
