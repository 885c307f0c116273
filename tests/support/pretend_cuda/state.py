"""The pretence that is under way in this process: its devices, groups, pinned memory and counts."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from tests.support.pretend_cuda.seen import Seen

GPU_AND_CPU = frozenset({"cpu", "cuda"})


Generator = torch.Generator  # `torch` has another one while a pretence is under way


class DeviceGenerator(torch.Generator):
    """`torch.Generator(device="cuda")`."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


class Pretence:
    """devices: how many this process sees. bound: the device that NCCL's communicators have."""

    def __init__(self, devices: int) -> None:
        self.seen = Seen()
        self.devices = devices
        self.current = 0
        self.bound: int | None = None
        self.backends: dict[str, frozenset[str]] = {}  # of groups by name: devices that they serve
        self._pinned: dict[int, weakref.ref[Tensor]] = {}
        self._arriving: set[int] = set()  # storages that a copy from the device is still filling

    def placed(self, device: torch.device | str | int) -> torch.device:
        """The device with its number."""
        if isinstance(device, int):
            device = torch.device("cuda", device)
        device = torch.device(device)
        if device.type != "cuda":
            return device
        index = self.current if device.index is None else device.index
        if index >= self.devices:
            self.seen.problem(f"invalid device ordinal: cuda:{index} of {self.devices}")
        return torch.device("cuda", index)

    # ---- pinned memory -------------------------------------------------------------------------

    def pin(self, tensor: Tensor) -> Tensor:
        address = tensor.untyped_storage().data_ptr()
        self._pinned[address] = weakref.ref(tensor, lambda _: self._unpin(address))
        return tensor

    def _unpin(self, address: int) -> None:
        self._pinned.pop(address, None)
        self._arriving.discard(address)

    def is_pinned(self, tensor: Tensor) -> bool:
        return bool(self._pinned) and tensor.untyped_storage().data_ptr() in self._pinned

    def arriving(self, tensor: Tensor) -> None:
        """A copy from the device to this pinned memory has been started and not waited for."""
        self._arriving.add(tensor.untyped_storage().data_ptr())

    def host_waits(self, what: str) -> None:
        """For the device, and so for the copies that were begun before. Which stream has them is
        not known: a wait for one is taken for a wait for all."""
        self._arriving.clear()
        self.seen.sync(what)

    def check_arrived(self, what: str, tensors: list[Tensor]) -> None:
        if self._arriving:
            for tensor in tensors:
                if tensor.untyped_storage().data_ptr() in self._arriving:
                    self.seen.problem(
                        f"{what}: pinned memory is read before the copy into it has been waited for"
                    )

    # ---- groups --------------------------------------------------------------------------------

    def serves(self, group: Any) -> frozenset[str]:
        """The devices whose tensors a process group takes, by the backend that it was made for."""
        return self.backends.get(group.group_name, self.backends.get("", GPU_AND_CPU))


_now: list[Pretence] = []


def now() -> Pretence:
    return _now[-1]


def begin(devices: int) -> Pretence:
    _now.append(Pretence(devices))
    return _now[-1]


def end() -> None:
    _now.pop()
