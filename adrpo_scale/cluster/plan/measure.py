"""Runs real code on tensors without memory, and counts the memory and work it would have used.

Inside `without_memory()` every tensor is a fake one on the "CPU": shapes, dtypes and lifetimes are
those of a real run; there are no contents. `Live` counts the bytes alive, rounded like requests to
CUDA's allocator, and operators and FLOPs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from adrpo_scale.engines.fake import with_memory

BLOCK = 512  # bytes: CUDA's allocator rounds up to multiples of it


_NO_KERNEL = {
    *(torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided),
    *(torch.ops.aten.new_empty, torch.ops.aten.detach, torch.ops.aten.lift_fresh),
    *(torch.ops.aten._unsafe_view, torch.ops.aten.set_, torch.ops.aten.is_same_size),
    *(torch.ops.prim.device, torch.ops.aten.scalar_tensor),  # read, made on the host
}


class Live(TorchDispatchMode):
    """Counts inside a `with` block. now, peak: bytes of living storages that were made inside, and
    their maximum, with what cuDNN may copy for a convolution: 10.20 GB for a decode of SD3's VAE,
    where 10.21 were measured without TF32 and 8.59 with it, for which cuDNN has a kernel more that
    copies nothing (H100 and H200). operators: calls that launch a kernel. flops: by torch's own
    formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.operators = 0
        self.flops = 0.0
        self._sizes: dict[int, int] = {}  # by storage

    def __enter__(self) -> Live:
        # FSDP frees gathered parameters by resizing storages, which calls no operator.
        self._plain_resize = plain = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = plain(storage, size)
            self._track(storage, size)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._plain_resize  # type: ignore[method-assign]
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {s._cdata for s in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        self.operators += not (func.is_view or operator in _NO_KERNEL)
        if operator in flop_registry:
            self.flops += flop_registry[operator](*args, **(kwargs or {}), out_val=result)
        for storage in _storages(result):
            if storage._cdata not in given or storage._cdata in self._sizes:
                self._track(storage, storage.nbytes())
        if operator is torch.ops.aten.convolution:
            # cuDNN mostly computes with channels last, in copies of input and result.
            copies = (
                args[0].numel() * args[0].element_size() + result.numel() * result.element_size()
            )
            self.peak = max(self.peak, self.now + copies)
        return result

    def _track(self, storage: torch.UntypedStorage, size: int) -> None:
        key, size = storage._cdata, -(-size // BLOCK) * BLOCK
        if key not in self._sizes:
            weakref.finalize(storage, self._drop, key)
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    found = [v for v in tree_leaves(values) if isinstance(v, Tensor) and not isinstance(v, DTensor)]
    return [tensor.untyped_storage() for tensor in found]


@dataclass(frozen=True)
class Cost:
    """The cost of one call. peak: most bytes beyond those held before; kept: bytes of its
    result."""

    peak: int
    kept: int
    flops: float
    operators: int


@torch.no_grad()
def cost_of(run: Callable[[], Any]) -> Cost:
    """The cost of a call without gradients; to be used inside `without_memory()`."""
    with Live() as live:
        kept = run()
    bytes_kept = live.now if kept is not None else 0
    return Cost(live.peak, bytes_kept, live.flops, live.operators)


def empty_model(build: Callable[[], Any], dtype: torch.dtype) -> nn.Module:
    """A frozen model with fake parameters; to be used inside `without_memory()`."""
    with with_memory(), init_empty_weights(include_buffers=False):
        model: nn.Module = build().requires_grad_(False).eval()
    tie = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()

    def fake(tensor: Tensor) -> Tensor:
        kept = tensor.dtype if not tensor.is_floating_point() else dtype
        return torch.empty(tensor.shape, dtype=kept)

    model._apply(fake)
    return model


def bytes_of(model: nn.Module) -> int:
    """Bytes of parameters and buffers; shared ones count once."""
    return sum(t.numel() * t.element_size() for t in {*model.parameters(), *model.buffers()})
