"""How an operator runs on the pretended device: checked, then on the values in CPU memory."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from tests.support.pretend_cuda import rules, state
from tests.support.pretend_cuda.tensor import DeviceTensor, moved

aten = torch.ops.aten
COLLECTIVES = ("c10d", "_c10d_functional")
FAKE = torch._C._TorchDispatchModeKey.FAKE  # DTensor works out shapes
# Between the autograd engine and an operator that it calls lie frames of these files alone.
BETWEEN = ("/pretend_cuda/dispatch.py", "torch/_compile.py", "_dynamo/eval_frame.py")
BETWEEN += ("_dynamo/utils.py", "/contextlib.py", "torch/_ops.py")


class Operators(TorchDispatchMode):
    """Runs every operator of this thread by the rules of the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch._C._get_dispatch_mode(FAKE) is not None:
            return func(*args, **kwargs)
        return run(func, args, kwargs)


class Calls(TorchFunctionMode):
    """Sees what Python asked for. C++ makes tensors where its arguments are: a device that Python
    has not given is that of the device tensor among the arguments."""

    place: torch.device | None = None  # of the tensors that the call's C++ makes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mine = _device_tensor((*args, *kwargs.values()))
        if func is Tensor.to and mine is not None and not isinstance(args[0], DeviceTensor):
            return moved(*args, **kwargs)  # Tensor.to(other)
        _check_generator(args, kwargs)
        before = Calls.place
        is_backward = mine is not None and func is Tensor.backward
        given = kwargs.get("device") is not None
        Calls.place = None if mine is None or is_backward or given else mine.place
        try:
            return _backward(*args, **kwargs) if is_backward else _called(func, args, kwargs)
        finally:
            Calls.place = before


def _device_tensor(parts: Any) -> DeviceTensor | None:
    for part in parts:
        if isinstance(part, DeviceTensor):
            return part
        if type(part) in (list, tuple):
            found = _device_tensor(part)
            if found is not None:
                return found
    return None


def _check_generator(args: Any, kwargs: Any) -> None:
    """A generator belongs to the device that is drawn on."""
    generator = kwargs.get("generator")
    if generator is None:
        return
    now = state.now()
    device = kwargs.get("device") or next((a.device for a in args if isinstance(a, Tensor)), "cpu")
    wanted = now.placed(device).type
    found = "cuda" if isinstance(generator, state.DeviceGenerator) else "cpu"
    if wanted != found:
        now.seen.problem(f"Expected a '{wanted}' device type for generator but found '{found}'")


def _called(func: Any, args: Any, kwargs: Any) -> Any:
    if func is Tensor.numpy or func is Tensor.tolist:
        state.now().check_arrived("numpy" if func is Tensor.numpy else "tolist", [args[0]])
    return func(*args, **kwargs)


def _backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """`Tensor.backward` with `Calls` on again: the engine calls Python, to compute activations
    anew."""
    start = torch.ones_like(loss) if gradient is None else gradient
    keep = create_graph if retain_graph is None else retain_graph
    with Calls():
        torch.autograd.graph._engine_run_backward(
            (loss,),
            (start,),
            keep,
            create_graph,
            tuple(inputs or ()),
            allow_unreachable=True,
            accumulate_grad=True,
        )


def _from_engine() -> bool:
    """Whether the autograd engine's C++ called this operator, with no Python in between."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.endswith("autograd/graph.py"):
            return frame.f_code.co_name == "_engine_run_backward"
        if not name.endswith(BETWEEN):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operator on the values; device tensors where the device would have made them."""
    now = state.now()
    flat, _ = tree_flatten((args, kwargs))
    tensors = [part for part in flat if isinstance(part, Tensor)]
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        return NotImplemented  # it comes again with the local tensors
    mine = next((t for t in tensors if isinstance(t, DeviceTensor)), None)
    asked = kwargs.get("device")
    if func.namespace in COLLECTIVES:
        if tensors:
            rules.check_collective(now, func, args, flat)
        return _collective(func, args, kwargs, mine)
    device = None if asked is None else now.placed(asked)
    if mine is None and (device is None or device.type != "cuda"):
        implied = Calls.place or (_engine_device(now) if not tensors else None)
        if not tensors and implied is not None and _makes(func, device):
            return _wrapped(func(*args, **kwargs), implied)  # zeros like a tensor of the device
        return _on_host(now, func, args, kwargs, tensors)
    if mine is not None and device is not None and device.type == "cpu" and _from_cpp(func):
        kwargs, device = {n: v for n, v in kwargs.items() if n != "device"}, None
    place = device or (mine.place if mine is not None else now.placed("cuda"))
    if mine is not None:
        rules.check(now, func, flat)
    _note_copy(now, func, args, kwargs, place)
    return _on_values(func, args, kwargs, flat, place)


def _from_cpp(func: Any) -> bool:
    """Whether C++ passed on what it takes for the device of a tensor. A copy comes from Python."""
    return _from_engine() or (func is not aten._to_copy.default and Calls.place is not None)


def _engine_device(now: state.Pretence) -> torch.device | None:
    return now.placed("cuda") if _from_engine() else None


def _makes(func: Any, device: torch.device | None) -> bool:
    return device is None or device.type == "cpu"


def _on_host(now: state.Pretence, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
    """An operator on CPU tensors; pinned memory is noted, because no memory can be pinned here."""
    name = rules.short(func)
    if name == "is_pinned":
        return now.is_pinned(args[0])
    if name in ("_pin_memory", "pin_memory"):
        now.seen.copied("pinned")
        return now.pin(args[0].clone())
    if not func.is_view and tensors:  # a view reads nothing
        now.check_arrived(name, tensors)
    if kwargs.get("pin_memory"):
        return now.pin(func(*args, **(kwargs | {"pin_memory": False})))
    return func(*args, **kwargs)


def _note_copy(now: state.Pretence, func: Any, args: Any, kwargs: Any, place: torch.device) -> None:
    if func is aten.copy_.default:
        target, source = args[0], args[1]
        to_device, waits = isinstance(target, DeviceTensor), not (len(args) > 2 and args[2])
        waits = waits and not kwargs.get("non_blocking")
        pinned = not to_device and now.is_pinned(target)
    elif func is aten._to_copy.default:
        source, to_device, pinned, waits = args[0], place.type == "cuda", False, True
    else:
        if kwargs.get("pin_memory"):
            now.seen.problem("Only dense CPU tensors can be pinned")
        return
    if isinstance(source, DeviceTensor) and not to_device:
        if pinned and not waits:
            now.arriving(target)
            now.seen.copied("device to pinned memory")
        else:
            now.host_waits("copy to the host")
    elif to_device and not isinstance(source, DeviceTensor):
        now.seen.copied("host to device")


def _on_values(func: Any, args: Any, kwargs: Any, flat: list[Any], place: torch.device) -> Any:
    """Runs on the inner tensors; what comes back as it was given is the tensor that was given."""
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(DeviceTensor, lambda t: t.inner, (args, kwargs))
    result = func(*args, **kwargs)
    if place.type != "cuda":
        return result
    given: dict[int, Tensor] = {id(t.inner): t for t in flat if isinstance(t, DeviceTensor)}
    given |= {id(t): t for t in flat if isinstance(t, Tensor) and not isinstance(t, DeviceTensor)}

    def back(part: Any) -> Any:
        if not isinstance(part, Tensor):
            return part
        same = given.get(id(part))
        if same is None:
            return _wrapped(part, place)
        if same.shape != part.shape or same.stride() != part.stride():
            same.data = DeviceTensor(part, place)  # squeeze_ and the like
        return same

    return tree_map(back, result)


def _wrapped(part: Any, place: torch.device) -> Any:
    plain = type(part) in (Tensor, nn.Parameter) and part.device.type == "cpu"
    return DeviceTensor(part, place) if plain else part


def _collective(func: Any, args: Any, kwargs: Any, mine: DeviceTensor | None) -> Any:
    """gloo carries what NCCL would."""
    if mine is None:
        return func(*args, **kwargs)
    given = {id(t.inner): t for t in tree_flatten(args)[0] if isinstance(t, DeviceTensor)}
    args, kwargs = tree_map_only(DeviceTensor, lambda t: t.inner, (args, kwargs))
    result = func(*args, **kwargs)

    def back(part: Tensor) -> Any:
        return given[id(part)] if id(part) in given else _wrapped(part, mine.place)

    return tree_map_only(Tensor, back, result)
