"""What CUDA refuses, checked before an operator runs.

Tensors of two devices meet only where CUDA lets them: a CPU scalar in a pointwise operator, a CPU
index of a device tensor, a copy. Sources: torch 2.15's TensorIterator (one CPU scalar, never an
output), its list of operators without a deterministic kernel (`torch.use_deterministic_algorithms`)
and the registrations of its CUDA kernels.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import torch.distributed as td
from torch import Tensor

from tests.support.pretend_cuda.seen import where
from tests.support.pretend_cuda.state import Pretence
from tests.support.pretend_cuda.tensor import DeviceTensor

aten = torch.ops.aten
COPIES = {"_to_copy", "copy_", "copy", "_copy_from", "_foreach_copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Operators whose result has a size, or a value, that the host needs.
SYNCS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive"}
SYNCS |= {"unique_dim", "bincount", "equal", "is_nonzero"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "ger"}
PRODUCTS |= {"convolution", "cudnn_convolution", "_convolution"}
SCALARS_MEET = {"masked_fill", "masked_fill_", "where", "fill_", "index_fill", "index_fill_"}
SCALARS_MEET |= {"lerp_", "lerp", "_fused_adamw_", "_fused_adam_"}
# The engine chooses its kernel by what C++ takes for the device, the CPU; a GPU has its own.
CHOSEN_BY_DEVICE = {"_scaled_dot_product_flash_attention_for_cpu"}
CHOSEN_BY_DEVICE |= {"_scaled_dot_product_flash_attention_for_cpu_backward"}
NOT_DETERMINISTIC = {
    *("avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward"),
    *("max_pool3d_with_indices_backward", "adaptive_max_pool2d_backward", "max_unpool2d"),
    *("max_unpool3d", "fractional_max_pool2d_backward", "fractional_max_pool3d_backward"),
    *(
        "upsample_linear1d_backward",
        "upsample_bilinear2d_backward",
        "upsample_trilinear3d_backward",
    ),
    *("upsample_bicubic2d_backward", "_upsample_bilinear2d_aa_backward"),
    *("reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward"),
    *("replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward"),
    *("nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward", "put_", "put", "kthvalue"),
    *("grid_sampler_2d_backward", "grid_sampler_3d_backward", "histc", "_embedding_bag_backward"),
}
KEYS = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
KEYS += ("CompositeExplicitAutogradNonFunctional",)
HAS_KERNELS = torch.version.cuda is not None  # a torch built for CPUs alone has no list of them


def check(now: Pretence, func: Any, flat: list[Any]) -> None:
    """Raises Fault for what a device would refuse; counts what the host would wait for."""
    tensors = [t for t in flat if isinstance(t, Tensor)]
    mine = [t for t in tensors if isinstance(t, DeviceTensor)]
    hosts = [t for t in tensors if not isinstance(t, DeviceTensor) and t.device.type == "cpu"]
    name = short(func)
    now.seen.operators[func.name()] += 1
    if not has_kernel(func):
        now.seen.problem(f"{func.name()} has no CUDA kernel")
    places = {t.place for t in mine}
    if len(places) > 1 and name not in COPIES:
        now.seen.problem(f"{name}: tensors on {sorted(map(str, places))}")
    _check_product(now, name, mine)
    _check_determinism(now, name, mine, flat)
    if name in SYNCS or (name == "repeat_interleave" and flat[-1] is None):
        now.host_waits(name)
    if name in INDEXED:
        _check_index(now, func, name, tensors)
    elif hosts and name not in COPIES and not func.namespace.startswith(("c10d", "_c10d")):
        _check_meeting(now, func, name, flat, hosts)


def short(func: Any) -> str:
    return func._schema.name.partition("::")[2]


@functools.cache
def has_kernel(func: Any) -> bool:
    if not HAS_KERNELS or short(func) in CHOSEN_BY_DEVICE:
        return True
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) for key in KEYS)


def _check_product(now: Pretence, name: str, mine: list[DeviceTensor]) -> None:
    if name not in PRODUCTS:
        return
    if not (mine[-1].is_floating_point() or mine[-1].is_complex()):
        now.seen.problem(f'"{name}_cuda" not implemented for {mine[-1].dtype}')
    config = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    if torch.are_deterministic_algorithms_enabled() and config not in (":4096:8", ":16:8"):
        now.seen.problem(f"{name} is not deterministic without CUBLAS_WORKSPACE_CONFIG=:4096:8")


def _check_determinism(now: Pretence, name: str, mine: list[DeviceTensor], flat: list[Any]) -> None:
    if not torch.are_deterministic_algorithms_enabled():
        return
    counted = name == "bincount" and len(mine) > 1  # with weights
    product = name.startswith("scatter_reduce") and "prod" in flat
    if name in NOT_DETERMINISTIC or counted or product or (name == "median" and 0 in flat):
        now.seen.problem(f"{name} does not have a deterministic implementation")


def _check_index(now: Pretence, func: Any, name: str, tensors: list[Tensor]) -> None:
    itself, rest = tensors[0], tensors[1:]
    written = name != "index" and name != "_unsafe_index"
    values = [rest.pop()] if written else []
    if not isinstance(itself, DeviceTensor):
        now.seen.problem(f"{name}: indices on the device, the indexed tensor on the CPU")
    if any(not isinstance(v, DeviceTensor) and v.dim() > 0 for v in values):
        now.seen.problem(f"{name}: values on the CPU, the indexed tensor on the device")
    if any(index.dtype in (torch.bool, torch.uint8) for index in rest):
        now.host_waits(f"{name} by a mask")
    if any(not isinstance(index, DeviceTensor) for index in rest):
        now.seen.copied(f"{name} by an index on the CPU")


def _check_meeting(
    now: Pretence, func: Any, name: str, flat: list[Any], hosts: list[Tensor]
) -> None:
    """Device and CPU tensors in one operator."""
    scalars = name in SCALARS_MEET or torch.Tag.pointwise in func.tags
    strict = name in ("cat", "stack") or name.startswith("_foreach")
    if name in ("index_fill", "index_fill_") and all(h.dim() == 1 for h in hosts):
        now.seen.copied(f"{name} by a list")  # x[..., [1, 2]] = 0: torch copies the list there
        return
    written = written_arguments(func, flat)
    bad = [h for h in hosts if h.dim() > 0 or strict or not scalars or any(h is w for w in written)]
    if len(hosts) > 1 and not name.startswith(("where", "_fused", "masked_fill")):
        bad = bad or hosts
    if bad:
        shapes = [tuple(tensor.shape) for tensor in bad]
        now.seen.problem(
            f"{name}: Expected all tensors to be on the same device, found cuda and cpu {shapes}"
        )


def written_arguments(func: Any, flat: list[Any]) -> list[Any]:
    """The first argument of an operator that writes in place (its name ends with _)."""
    return flat[:1] if short(func).endswith("_") else []


# ---- collectives ---------------------------------------------------------------------------------

NCCL_DTYPES = {
    *(torch.uint8, torch.int8, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.complex128),
}


def check_collective(now: Pretence, func: Any, args: Any, flat: list[Any]) -> None:
    """Raises Fault for tensors that the group's backend would not take; counts the collective."""
    name = func.name()
    tensors = [t for t in flat if isinstance(t, Tensor) and not t.is_meta]
    kinds = {"cuda" if isinstance(t, DeviceTensor) else "cpu" for t in tensors}
    serves = _serves(now, args)
    if len(kinds) > 1:
        now.seen.problem(f"{name}: CPU and CUDA tensors in one collective")
    for kind in kinds - serves:
        now.seen.problem(f"{name}: the group has no backend for {kind} tensors")
    if kinds != {"cuda"}:
        now.seen.over_gloo[name, where()] += 1
        return
    for tensor in tensors:
        if tensor.dtype not in NCCL_DTYPES:
            now.seen.problem(f"{name}: NCCL does not take {tensor.dtype}")
        if not tensor.is_contiguous():
            now.seen.problem(f"{name}: Tensors must be contiguous")
        if now.bound is not None and tensor.device.index != now.bound:
            now.seen.problem(
                f"{name}: NCCL is bound to cuda:{now.bound}, the tensor lies on {tensor.device}"
            )
    _check_operation(now, name, args, tensors[0].dtype)
    now.seen.collectives[name, str(tensors[0].dtype).removeprefix("torch."), where()] += 1


def _serves(now: Pretence, args: Any) -> frozenset[str]:
    for part in args:
        if isinstance(part, torch.ScriptObject) and "ProcessGroup" in str(part._type()):
            return now.serves(td.ProcessGroup.unbox(part))
    return frozenset({"cpu", "cuda"})


def _check_operation(now: Pretence, name: str, args: Any, dtype: torch.dtype) -> None:
    for part in args:
        if isinstance(part, torch.ScriptObject) and "ReduceOp" in str(part._type()):
            operation = td.ReduceOp.unbox(part)
            bitwise = (td.ReduceOp.BAND, td.ReduceOp.BOR, td.ReduceOp.BXOR)
            if any(operation == other for other in bitwise):  # it has no hash
                now.seen.problem(f"{name}: Cannot use a bitwise reduction with NCCL")
            if operation == td.ReduceOp.AVG and dtype is torch.bool:
                now.seen.problem(f"{name}: Cannot use AVG with bool over NCCL")
