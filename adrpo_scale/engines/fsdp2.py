"""PyTorch FSDP2: replicated (`shard = 1`), sharded inside each node and replicated across nodes
(`node`), or sharded over all ranks (`all`).

Sharded: every block and the root are `fully_shard` units. Trained parameters are float32 and are
cast to the compute dtype when gathered; gradients are reduced in float32. FSDP averages gradients
over ranks, but the loss is already divided by the global count, so backward multiplies by the
number of ranks.

Replicated: the model has none of FSDP's hooks and copies, and `step` sums the gradients once, in
one flat float32 buffer. With bfloat16 compute, a float32 master copy of each trained parameter
collects the gradients, and the optimizer steps the masters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
import torch.distributed as td
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, given, of_one_rank
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import FlatRange
from adrpo_scale.engines.base import Engine, EngineConfig, OptimizerConfig, StepResult
from adrpo_scale.engines.hooks import without_hooks
from adrpo_scale.engines.loading import (
    begin_moments,
    build_adamw,
    build_on_meta,
    first_values,
    load_whole,
    prepare_device,
    stored_tensors,
    trained_parameters,
)
from adrpo_scale.engines.spec import DTYPES, ModelSpec


class Fsdp2Config(EngineConfig):
    name: str = setting("fsdp2", "PyTorch FSDP2", effect="rounding")
    shard: Literal[1, "node", "all"] = setting(
        1,
        '1: replicate; "node": shard inside a node, replicate across; "all": shard over all',
        effect="rounding",
    )
    reduce_every_micro_batch: bool = setting(
        False,
        "sharded: reduce gradients after every micro-batch: less memory, more communication",
        effect="rounding",
    )


class Fsdp2Engine(Engine):
    """The engine `fsdp2`; the module docstring describes it."""

    Config: ClassVar[Any] = Fsdp2Config
    planned_by: ClassVar[str] = "adrpo_scale.engines.fsdp2_plan:Fsdp2Plan"

    def __init__(self, config: Fsdp2Config, optimizer: OptimizerConfig, seed: int) -> None:
        self.config, self.optimizer_config, self.seed = config, optimizer, seed
        self.dtype = DTYPES[config.dtype]
        self.device = prepare_device(config)
        self.mesh = build_mesh(config.shard, self.device.type)
        dist.hold_timeout(config.timeout_seconds)
        self._trained: dict[str, nn.Parameter] = {}
        self._masters: dict[str, Tensor] = {}

    def build_policy(self, spec: ModelSpec) -> nn.Module:
        model = self._build(spec, trained=True)
        self._policy = model
        self._trained = trained_parameters(model)
        self._check_that_all_are_sharded()
        if self.mesh is None and self.dtype != torch.float32:
            self._add_masters(spec)
        self._optimizer = build_adamw(self._stepped().values(), self.optimizer_config)
        begin_moments(self._optimizer, self._stepped().values())
        return model

    def build_frozen(self, spec: ModelSpec) -> nn.Module:
        return self._build(spec, trained=False)

    def _build(self, spec: ModelSpec, *, trained: bool) -> nn.Module:
        """Model on the meta device, with adapters → dtypes → shards → memory → weights."""
        model = self._sharded_on_meta(spec, trained=trained)
        model._apply(self._materialised)
        spec.tie(model)
        self._load(model, spec)
        return model.train(trained)

    def _sharded_on_meta(self, spec: ModelSpec, *, trained: bool) -> nn.Module:
        """The steps of `_build` that need no memory; `plan` runs these on real meta tensors."""
        model = build_on_meta(spec, trained=trained)
        for parameter in model.parameters():
            keep_float32 = parameter.requires_grad and self.mesh is not None
            parameter.data = parameter.data.to(torch.float32 if keep_float32 else self.dtype)
        if trained and self.config.activation_checkpointing:
            spec.checkpoint_activations(model)
        if self.mesh is not None:
            self._shard(model, spec)
        return model

    def _shard(self, model: nn.Module, spec: ModelSpec) -> None:
        # Cast to bfloat16, a timestep of 1000·sigma would be off by up to 4.
        policy = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        blocks = [[m] for m in model.modules() if type(m).__name__ in spec.blocks]
        for unit in [*blocks, *spec.units(model), [model]]:
            fully_shard(unit, mesh=self.mesh, reshard_after_forward=True, mp_policy=policy)

    def _materialised(self, tensor: Tensor) -> Tensor:
        """Uninitialised memory for a meta parameter; a buffer, moved to the device."""
        if tensor.is_meta:
            return torch.empty_like(tensor, device=self.device)
        return tensor.to(self.device)

    @torch.no_grad()
    def _load(self, model: nn.Module, spec: ModelSpec) -> None:
        tensors = stored_tensors(model)
        pace = Pace(
            f"loading weights of {spec.weights.folder.name}", len(tensors), "tensors", together=True
        )
        for name, tensor in tensors.items():
            pace.step()
            local, start, stop = local_rows(tensor)
            read = partial(first_values, name, tuple(tensor.shape), spec, self.seed, start, stop)
            if isinstance(tensor, DTensor):
                local.copy_(read())
            else:
                load_whole(local, read)

    def _check_that_all_are_sharded(self) -> None:
        plain = [n for n, p in self._trained.items() if not isinstance(p, DTensor)]
        if self.mesh is not None and plain:
            raise RuntimeError(f"trained but not sharded: {plain[:3]}; please open an issue")

    def _add_masters(self, spec: ModelSpec) -> None:
        """Creates float32 masters from the stored weights.

        A hook moves each gradient to its master, so that micro-batches accumulate in float32.
        """
        for name, parameter in self._trained.items():
            read = partial(first_values, name, tuple(parameter.shape), spec, self.seed, 0, None)
            master = torch.empty(parameter.shape, dtype=torch.float32, device=self.device)
            load_whole(master, read)
            self._masters[name] = master

            def collect(p: Tensor, master: Tensor = master) -> None:
                gradient = given(p.grad).float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                p.grad = None

            parameter.register_post_accumulate_grad_hook(collect)

    def _stepped(self) -> dict[str, Tensor]:
        """The tensors that the optimizer steps, by name: masters, or trained parameters."""
        return dict(self._masters) if self._masters else dict(self._trained)

    @contextmanager
    def sampling(self, *models: nn.Module) -> Iterator[None]:
        modules = [module for model in models for module in model.modules()]
        units = [module for module in modules if isinstance(module, FSDPModule)]
        with torch.no_grad(), without_hooks(modules, _hook_ids(units)):
            for unit in units:
                unit.unshard()
            try:
                yield
            finally:
                for unit in units:
                    unit.reshard()

    def backward(self, loss: Tensor, *, last: bool) -> None:
        if self.mesh is None:
            loss.backward()
            return
        policy = cast(FSDPModule, self._policy)
        policy.set_requires_gradient_sync(last or self.config.reduce_every_micro_batch)
        policy.set_is_last_backward(last)
        (loss * dist.world_size()).backward()

    @torch.no_grad()
    def step(self, learning_rate: float) -> StepResult:
        stepped = list(self._stepped().values())
        if self.mesh is None:
            sum_gradients(stepped)
        norm = global_norm([p.grad for p in stepped if p.grad is not None])
        size = float(norm)
        accepted = self.accepts(size)
        if accepted:
            scale = min(1.0, self.optimizer_config.max_grad_norm / (size + 1e-6))
            if scale < 1.0:
                torch._foreach_mul_([p.grad for p in stepped if p.grad is not None], scale)
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            self.publish()
        self._optimizer.zero_grad(set_to_none=True)
        return StepResult(size, skipped=not accepted)

    def accepts(self, norm: float) -> bool:
        """Whether a step is taken whose gradients have that global norm before clipping."""
        return math.isfinite(norm)

    def trained_slices(self) -> dict[str, Tensor]:
        return {n: local_rows(p.detach())[0] for n, p in self._stepped().items()}

    @torch.no_grad()
    def publish(self) -> None:
        if self._masters:
            live = [self._trained[n].data for n in self._masters]
            torch._foreach_copy_(live, list(self._masters.values()))

    @torch.no_grad()
    def fill(self, model: nn.Module, slices: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        for name, values in slices.items():
            local_rows(parameters[name])[0].copy_(values)

    def places(self) -> dict[str, FlatRange]:
        return {name: self._place(p.detach()) for name, p in self._stepped().items()}

    def _place(self, tensor: Tensor) -> FlatRange:
        local, start, _ = local_rows(tensor)
        row = tensor.shape[1:].numel()
        replicas, replica = dist.world_size(), dist.rank()
        if self.mesh is not None:
            two = self.mesh.ndim == 2
            replicas = self.mesh.size(0) if two else 1
            replica = self.mesh.get_local_rank("replicate") if two else 0
        first = start * row
        return FlatRange(tuple(tensor.shape), first, first + local.numel(), replica, replicas)

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {
            moment: {
                name: local_rows(self._optimizer.state[p][moment])[0]
                for name, p in self._stepped().items()
            }
            for moment in ("exp_avg", "exp_avg_sq")
        }

    def optimizer_steps(self) -> dict[str, int]:
        stepped = self._stepped()
        steps = torch.stack([self._optimizer.state[p]["step"] for p in stepped.values()])
        return {name: int(step) for name, step in zip(stepped, steps.tolist(), strict=True)}

    def set_optimizer_steps(self, steps: Mapping[str, int]) -> None:
        for name, parameter in self._stepped().items():
            self._optimizer.state[parameter]["step"].fill_(steps[name])


def build_mesh(shard: Literal[1, "node", "all"], device: str) -> DeviceMesh | None:
    """Mesh of all ranks: ("shard",) or ("replicate", "shard"); None where nothing is sharded.

    Raises ConfigError if nodes hold different numbers of ranks.
    """
    world = dist.world_size()
    if shard == 1 or world == 1:
        return None
    degree = world if shard == "all" else dist.rank_facts().local_world
    if world % degree:
        raise of_one_rank(
            ConfigError(
                f'engine.shard = "node" with {world} ranks and {degree} on this node: every '
                'node must run the same number; use engine.shard = "all" or ask for equal nodes'
            )
        )
    if degree == 1:
        return None
    if degree == world:
        return init_device_mesh(device, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(
        device, (world // degree, degree), mesh_dim_names=("replicate", "shard")
    )


def _hook_ids(units: Sequence[FSDPModule]) -> set[int]:
    """The ids of FSDP's forward hooks."""
    found = set()
    for unit in units:
        state = unit._get_fsdp_state()
        for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
            found |= {part.id for part in getattr(handle, "handles", (handle,))}
    return found


def local_rows(tensor: Tensor) -> tuple[Tensor, int, int | None]:
    """(this rank's part, first row, row after the last) of a parameter sharded on dim 0.

    The last is None for a tensor that is not sharded.
    """
    if not isinstance(tensor, DTensor):
        return tensor, 0, None
    shape, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    start = offset[0] if shape[0] else 0
    return tensor.to_local(), start, start + shape[0]


def sum_gradients(parameters: list[Tensor]) -> None:
    """All-reduces the gradients in one flat float32 buffer, in place.

    A parameter without a gradient on this rank counts as zero: another rank may have one.
    """
    if dist.world_size() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    td.all_reduce(flat)
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def global_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm over all gradients and ranks, the same number on every rank."""
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
