"""`torch.cuda` and the process groups of the pretended device."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as td
from torch import Tensor

from tests.support.pretend_cuda import state
from tests.support.pretend_cuda.state import GPU_AND_CPU, DeviceGenerator, Generator, Pretence
from tests.support.pretend_cuda.tensor import DeviceTensor

GIB = 1 << 30
FSDP = ("_fsdp_param", "_fsdp_param_group", "_fsdp_collectives", "_fsdp_init", "_fully_shard")


class Stream:
    """Kernels of the pretended device end before the next begins."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.device, self.stream_id, self.device_index, self.device_type = None, 0, 0, 1

    def wait_stream(self, *_: Any) -> None: ...
    def wait_event(self, *_: Any) -> None: ...
    def synchronize(self) -> None:
        state.now().host_waits("Stream.synchronize")

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None: ...


class Event:
    def __init__(self, *_: Any, **__: Any) -> None: ...
    def record(self, *_: Any) -> None: ...
    def wait(self, *_: Any) -> None: ...
    def synchronize(self) -> None:
        state.now().host_waits("Event.synchronize")

    def query(self) -> bool:
        return True

    def elapsed_time(self, _: Any) -> float:
        return 0.0


class Properties:
    """An RTX A6000."""

    name, total_memory, major, minor = "NVIDIA RTX A6000", 48 * GIB, 8, 6
    multi_processor_count, warp_size, max_threads_per_multi_processor = 84, 32, 1536
    regs_per_multiprocessor, is_integrated, gcnArchName, uuid = 65536, False, "", "pretended"


@contextlib.contextmanager
def installed(now: Pretence) -> Iterator[None]:
    """A context in which torch finds the pretended device."""
    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        for name, value in _cuda(now).items():
            patch(torch.cuda, name, value)
        patch(torch.accelerator, "is_available", lambda: True)
        patch(torch._C, "_get_accelerator", lambda *_: torch.device("cuda"))
        patch(torch, "Generator", _Generators)
        patch(Tensor, "is_pinned", lambda tensor, *_: now.is_pinned(tensor))
        patch(Tensor, "pin_memory", lambda tensor, *_: now.pin(tensor.clone()))
        patch(td, "init_process_group", _init_process_group(now))
        patch(td, "new_group", _new_group(now))
        _patch_fsdp(patch)
        _patch_deepspeed(stack, patch)
        yield


def _cuda(now: Pretence) -> dict[str, Any]:
    stream = Stream()

    def synchronize(*_: Any) -> None:
        now.host_waits("torch.cuda.synchronize")

    def set_device(device: Any) -> None:
        now.current = now.placed(device).index

    done = ("init", "_lazy_init", "reset_peak_memory_stats", "empty_cache", "manual_seed")
    done += ("manual_seed_all", "ipc_collect", "set_rng_state", "set_per_process_memory_fraction")
    none = ("max_memory_allocated", "memory_allocated", "memory_reserved", "max_memory_reserved")
    return {
        # A function each: torch's compiler wants no name twice.
        **{name: _answering(None) for name in done},
        **{name: _answering(0) for name in none},
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: now.devices,
        "current_device": lambda: now.current,
        "set_device": set_device,
        "synchronize": synchronize,
        "device": lambda _: contextlib.nullcontext(),
        "stream": lambda _: contextlib.nullcontext(),
        "Stream": Stream,
        "Event": Event,
        "current_stream": lambda *_: stream,
        "default_stream": lambda *_: stream,
        "get_device_name": lambda *_: Properties.name,
        "get_device_properties": lambda *_: Properties(),
        "get_device_capability": lambda *_: (8, 6),
        "get_arch_list": lambda: ["sm_86"],
        "mem_get_info": lambda *_: (47 * GIB, 48 * GIB),
        "memory_stats": lambda *_: {},
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "is_bf16_supported": lambda *_, **__: True,
        "initial_seed": torch.initial_seed,
    }


def _answering(value: Any) -> Any:
    return lambda *_, **__: value


class _AnyGenerator(type):
    def __instancecheck__(cls, found: Any) -> bool:
        return isinstance(found, Generator)


class _Generators(metaclass=_AnyGenerator):
    """`torch.Generator`, for the pretended device too."""

    def __new__(cls, device: Any = "cpu") -> Any:
        is_device = torch.device(device).type == "cuda"
        return DeviceGenerator() if is_device else Generator(device)


# ---- process groups ----------------------------------------------------------------------------


def _served(backend: str | None) -> frozenset[str]:
    """The devices of a backend's name: "cpu:gloo,cuda:nccl", "nccl", "gloo"."""
    if backend is None or ":" in backend:
        return GPU_AND_CPU
    return frozenset({"cuda"} if backend == "nccl" else {"cpu"})


def _init_process_group(now: Pretence) -> Any:
    real = td.init_process_group

    def init(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        device = kwargs.pop("device_id", None)
        local = int(os.environ.get("LOCAL_RANK", now.current))
        now.bound = now.placed("cuda").index if device is None else now.placed(device).index
        if device is None and local != now.current:
            now.seen.problem(f"NCCL binds to cuda:{local}, the current device is {now.current}")
        now.backends[""] = _served(backend)
        real("gloo", *args, **kwargs)

    return init


def _new_group(now: Pretence) -> Any:
    real = td.new_group

    def new_group(*args: Any, **kwargs: Any) -> Any:
        backend = kwargs.pop("backend", None)
        kwargs.pop("device_id", None)
        group = real(*args, backend="gloo", **kwargs)
        if backend is not None and hasattr(group, "group_name"):
            now.backends[group.group_name] = _served(backend)
        return group

    return new_group


# ---- libraries ---------------------------------------------------------------------------------


def _patch_fsdp(patch: Any) -> None:
    """FSDP frees and allocates the storage of whole parameters: that of the values."""
    import importlib

    folder = "torch.distributed.fsdp._fully_shard"
    modules = [importlib.import_module(f"{folder}.{name}") for name in FSDP]
    for name in ("free_storage", "alloc_storage"):
        for module in modules:
            if hasattr(module, name):
                patch(module, name, _on_inner(getattr(module, name)))
    for module in modules:
        if hasattr(module, "_move_states_to_device"):  # it would set `.data` of CPU tensors
            patch(module, "_move_states_to_device", _moved_states)


def _on_inner(real: Any) -> Any:
    def act(tensor: Tensor) -> None:
        real(tensor.inner if isinstance(tensor, DeviceTensor) else tensor)

    return act


def _moved_states(params: Any, buffers: Any, device: torch.device) -> None:
    for tensor in (*params, *buffers):
        if tensor.device.type != "meta" and tensor.device != device:
            with torch.no_grad():
                there = tensor.to(device)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            there = torch.nn.Parameter(there, tensor.requires_grad) if is_parameter else there
            torch.utils.swap_tensors(tensor, there)


def _patch_deepspeed(stack: contextlib.ExitStack, patch: Any) -> None:
    if "deepspeed" not in sys.modules:
        stack.enter_context(mock.patch.dict(os.environ, {"DS_ACCELERATOR": "cuda"}))
        return
    from deepspeed.accelerator import real_accelerator
    from deepspeed.accelerator.cuda_accelerator import CUDA_Accelerator

    patch(real_accelerator, "ds_accelerator", CUDA_Accelerator())
