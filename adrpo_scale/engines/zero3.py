"""DeepSpeed ZeRO-3: parameters, gradients and Adam's moments sharded over all ranks.

Each parameter, flattened in row-major order, is cut into equal parts, of which the last ones may be
shorter or empty; DeepSpeed's padding is never part of a slice. DeepSpeed gathers a module's
parameters before its forward and backward, reduces gradients in float32 in every micro-batch, and
keeps float32 masters and the state of torch's AdamW for this rank's parts.

Departures from FSDP2: gradients are reduced in every micro-batch, not in the last one only, and a
trained parameter without a gradient is stepped with a zero gradient, so that all parameters have
the same number of steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn

from adrpo_scale.core import dist
from adrpo_scale.core.pace import Pace
from adrpo_scale.core.settings import setting
from adrpo_scale.core.types import FlatRange
from adrpo_scale.engines.adapters import original_name
from adrpo_scale.engines.base import (
    Engine,
    EngineConfig,
    OptimizerConfig,
    StepResult,
    sums_of,
)
from adrpo_scale.engines.deepspeed_start import (
    secondary_degree,
    secondary_group,
    start_deepspeed,
)
from adrpo_scale.engines.hooks import without_hooks
from adrpo_scale.engines.loading import (
    begin_moments,
    build_adamw,
    build_on_meta,
    first_values,
    prepare_device,
    stored_tensors,
    trained_parameters,
)
from adrpo_scale.engines.spec import DTYPES, ModelSpec

REDUCE_BUCKET = 50_000_000  # elements; DeepSpeed's default of 500 million takes 2 GB on every rank
MOMENTS = ("exp_avg", "exp_avg_sq")
MASTER = "master"  # a kind of slice, like MOMENTS


class Zero3Config(EngineConfig):
    name: str = setting("zero3", "DeepSpeed ZeRO-3", effect="rounding")
    shard: Literal[1, "node", "all"] = setting(
        "all",
        '"all": shard over all; "node": keep a second copy sharded inside each node, so that '
        "backward gathers inside it (hpZ); 1 is refused",
        effect="rounding",
    )
    offload_optimizer: bool = setting(
        False, "Adam's moments and float32 masters in host memory", effect="rounding"
    )
    offload_parameters: bool = setting(
        False, "shards of parameters in host memory while not in use", effect="rounding"
    )

    @field_validator("shard")
    @classmethod
    def _is_sharded(cls, shard: Literal[1, "node", "all"]) -> Literal[1, "node", "all"]:
        if shard == 1:
            raise ValueError(
                "1 replicates the model, which ZeRO-3 does not do; use engine.name = "
                '"fsdp2", or engine.shard = "all"'
            )
        return shard


class Zero3Engine(Engine):
    """The engine `zero3`; the module docstring describes it."""

    Config: ClassVar[Any] = Zero3Config
    planned_by: ClassVar[str] = "adrpo_scale.engines.zero3_plan:Zero3Plan"

    def __init__(self, config: Zero3Config, optimizer: OptimizerConfig, seed: int) -> None:
        self.config, self.optimizer_config, self.seed = config, optimizer, seed
        self.dtype = DTYPES[config.dtype]
        self.device = prepare_device(config)
        self._secondary = secondary_degree(config.shard)
        self._deepspeed = start_deepspeed(self.device.type)
        self._engines: dict[nn.Module, Any] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._handed_out: dict[tuple[str, str], Tensor] = {}

    # ---- building ------------------------------------------------------------------------------

    def build_policy(self, spec: ModelSpec) -> nn.Module:
        model = self._build(spec, trained=True)
        self._trained = trained_parameters(model)
        self._adamw = build_adamw(self._trained.values(), self.optimizer_config)
        self._policy = self._initialize(model, spec, self._adamw)
        self._zero = self._policy.optimizer  # it holds shards, masters and gradients
        begin_moments(self._adamw, self._zero.fp32_partitioned_groups_flat)
        return model.train()

    def build_frozen(self, spec: ModelSpec) -> nn.Module:
        model = self._build(spec, trained=False)
        self._initialize(model, spec, None)
        return model.eval()

    def _build(self, spec: ModelSpec, *, trained: bool) -> nn.Module:
        """Model on the meta device, with adapters → shards without values."""
        model = build_on_meta(spec, trained=trained)
        if trained and self.config.activation_checkpointing:
            spec.checkpoint_activations(model)
        self._partition(model)
        spec.tie(model)
        return model

    def _partition(self, model: nn.Module) -> None:
        """Replaces meta parameters by sharded ones, one at a time, so that no rank ever holds the
        whole model. A parameter shared by two modules stays shared."""
        sharded: dict[nn.Parameter, nn.Parameter] = {}
        for module in model.modules():
            for name, meta in list(module.named_parameters(recurse=False)):
                if meta not in sharded:
                    sharded[meta] = self._sharded(meta, next(iter(sharded.values()), None))
                setattr(module, name, sharded[meta])
        # Buffers have values already.
        for module in model.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module._buffers[name] = buffer.to(self.device)

    def _sharded(self, meta: nn.Parameter, other: Any) -> nn.Parameter:
        """A ZeRO parameter like `meta`. other: an existing one with the same settings, or None."""
        whole = torch.zeros(meta.shape, dtype=self.dtype, device=self.device)
        parameter = nn.Parameter(whole, requires_grad=meta.requires_grad)
        if other is None:
            # As a context, it would also partition every module built inside.
            self._deepspeed.zero.Init(
                module=nn.ParameterList([parameter]),
                config_dict_or_path=self._settings(0),
                zero_param_parallel_group=secondary_group(),
            )
        else:
            other.convert_to_zero_parameters(param_list=[parameter])
        return parameter

    def _settings(self, trained: int) -> dict[str, Any]:
        """DeepSpeed's configuration. trained: number of trained elements."""
        on_host = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        zero: dict[str, Any] = {
            "stage": 3,
            "reduce_bucket_size": max(1, min(REDUCE_BUCKET, trained)),
            # Small parameters would otherwise stay whole between steps and be gathered in `step`.
            "stage3_param_persistence_threshold": 0,
            "zero_hpz_partition_size": self._secondary,
            "memory_efficient_linear": False,  # True replaces torch.nn.functional.linear globally
        }
        if self.config.offload_optimizer:
            zero["offload_optimizer"] = on_host
        if self.config.offload_parameters:
            zero["offload_param"] = on_host
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # `step` ends the accumulation, not a counter
            "gradient_clipping": self.optimizer_config.max_grad_norm,
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # True compiles one first, for minutes
            "steps_per_print": None,
            "timers": {"throughput": {"enabled": False}},
            "zero_optimization": zero,
        }

    def _initialize(self, model: nn.Module, spec: ModelSpec, optimizer: Any) -> Any:
        """The DeepSpeedEngine of a sharded model, loaded. optimizer: None for a frozen model."""
        trained = sum(p.ds_numel for p in self._trained.values())  # type: ignore[attr-defined]
        engine, *_ = self._deepspeed.initialize(
            model=model, optimizer=optimizer, config=self._settings(trained)
        )
        dist.hold_timeout(self.config.timeout_seconds)  # DeepSpeed has made groups
        self._engines[model] = engine
        self._load(model, spec)
        return engine

    @torch.no_grad()
    def _load(self, model: nn.Module, spec: ModelSpec) -> None:
        """Fills this rank's part of every parameter, and the float32 masters of trained ones."""
        parameters: list[tuple[str, Any]] = list(model.named_parameters())
        what = f"loading weights of {spec.weights.folder.name}"
        pace = Pace(what, len(parameters), "tensors", together=True)
        for name, parameter in parameters:
            pace.step()
            padded = torch.zeros(parameter.ds_tensor.numel(), device=parameter.ds_tensor.device)
            place = flat_range(parameter)
            padded[: place.stop - place.start] = self._first_values(name, place, spec)
            parameter.ds_tensor.copy_(padded)
            parameter.ds_secondary_tensor = None  # hpZ's copy still has the zeros
            if parameter.requires_grad:
                self._deepspeed.utils.safe_set_local_fp32_param(parameter, padded)
        for name, buffer in stored_tensors(model).items():
            if not isinstance(buffer, nn.Parameter):
                buffer.copy_(spec.weights.read(original_name(name)))

    def _first_values(self, name: str, place: FlatRange, spec: ModelSpec) -> Tensor:
        """Elements [start, stop) of the flattened tensor. Reads only the rows that hold them."""
        row = max(1, torch.Size(place.shape[1:]).numel())
        first, end = place.start // row, -(-place.stop // row)
        rows = first_values(name, place.shape, spec, self.seed, first, end).flatten()
        return rows[place.start - first * row : place.stop - first * row]

    # ---- forward, backward, step ---------------------------------------------------------------

    @contextmanager
    def sampling(self, *models: nn.Module) -> Iterator[None]:
        gathered = self._deepspeed.zero.GatheredParameters
        with torch.no_grad(), ExitStack() as stack:
            for engine in {id(self._engines[m]): self._engines[m] for m in models}.values():
                # Parameters that a forward without backward left gathered would stay gathered.
                engine.optimizer.empty_partition_cache()
                stack.enter_context(hooks_off(engine))
                stack.enter_context(gathered(list(engine.module.parameters())))
            yield

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._zero.set_gradient_accumulation_boundary(False)
        # DeepSpeedEngine.forward clears it, but the domain calls the model itself.
        self._zero.clear_backward_seen_flag()
        self._policy.backward(loss * dist.world_size())  # DeepSpeed averages over ranks

    @torch.no_grad()
    def step(self, learning_rate: float) -> StepResult:
        self._handed_out.clear()
        self._zero.set_lr(learning_rate)
        self._policy.step()
        self._clear_gradients()
        norm = float(self._policy.get_global_grad_norm())
        return StepResult(norm, skipped=not self._policy.was_step_applied())

    def _clear_gradients(self) -> None:
        """Zeros the gradients. DeepSpeed only overwrites them: a parameter without a new gradient
        would be stepped with its old one again, and the NaN of a skipped step would stay."""
        self._zero.grad_partitions_flat_buffer.zero_()
        for part in self._zero.fp32_partitioned_groups_flat:
            if part.grad is not None:
                part.grad.zero_()

    # ---- this rank's slices --------------------------------------------------------------------

    def trained_slices(self) -> dict[str, Tensor]:
        return {name: self._hand_out(MASTER, name) for name in self._trained}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        return {kind: {n: self._hand_out(kind, n) for n in self._trained} for kind in MOMENTS}

    @torch.no_grad()
    def moment_sums(self) -> dict[int, tuple[float, float]]:
        """Of the flat partitions, where they lie: `moments` would copy those in host memory. Their
        padding is 0."""
        states = [*self._adamw.state.values()]
        parts = ([state[kind] for state in states] for kind in MOMENTS)
        return {next(iter(self.optimizer_steps().values())): sums_of(*parts)}

    def _hand_out(self, kind: str, name: str) -> Tensor:
        """This rank's part of one parameter, without padding. kind: MASTER, or one of MOMENTS.

        With offload on GPUs, DeepSpeed returns copies. They are kept in host memory until `step`,
        and `publish` writes them back.
        """
        if (kind, name) not in self._handed_out:
            padded = self._local(kind, self._trained[name]).detach()
            self._handed_out[kind, name] = padded.cpu() if self.config.offload_optimizer else padded
        place = flat_range(self._trained[name])
        return self._handed_out[kind, name][: place.stop - place.start]

    def _local(self, kind: str, parameter: nn.Parameter) -> Tensor:
        """This rank's part of the float32 master, or of a moment, with padding."""
        utils = self._deepspeed.utils
        if kind == MASTER:
            return utils.safe_get_local_fp32_param(parameter)
        return utils.safe_get_local_optimizer_state(parameter, kind)

    @torch.no_grad()
    def publish(self) -> None:
        utils = self._deepspeed.utils
        for (kind, name), padded in self._handed_out.items():
            if kind == MASTER:
                utils.safe_set_local_fp32_param(self._trained[name], padded)
            else:
                utils.safe_set_local_optimizer_state(self._trained[name], padded, kind)
        for parameter in self._trained.values():
            parameter.ds_tensor.copy_(self._local(MASTER, parameter))  # type: ignore[attr-defined]
        # Forward would otherwise gather hpZ's outdated copy inside the node.
        self._zero.invalidate_secondary_tensor()

    @torch.no_grad()
    def fill(self, model: nn.Module, slices: Mapping[str, Tensor]) -> None:
        # A parameter that a pass left gathered would keep its old values.
        self._engines[model].optimizer.empty_partition_cache()
        parameters: dict[str, Any] = dict(model.named_parameters())
        for name, values in slices.items():
            parameters[name].ds_tensor[: len(values)] = values
            parameters[name].ds_secondary_tensor = None  # hpZ's copy has the old values

    def places(self) -> dict[str, FlatRange]:
        return {name: flat_range(parameter) for name, parameter in self._trained.items()}

    def optimizer_steps(self) -> dict[str, int]:
        step = next(iter(self._adamw.state.values()))["step"]
        return dict.fromkeys(self._trained, int(step))

    def set_optimizer_steps(self, steps: Mapping[str, int]) -> None:
        for state in self._adamw.state.values():
            state["step"].fill_(max(steps[name] for name in self._trained))


def flat_range(parameter: Any) -> FlatRange:
    """The range of this rank's part in a flattened ZeRO parameter, without padding."""
    numel, size = parameter.ds_numel, parameter.ds_tensor.ds_numel
    start = min(dist.rank() * size, numel)
    return FlatRange(tuple(parameter.ds_shape), start, min(start + size, numel))


def hooks_off(engine: Any) -> AbstractContextManager[None]:
    """A context in which forward passes run without DeepSpeed's hooks."""
    zero = engine.optimizer
    offload = getattr(zero, "parameter_offload", zero)
    handles = [*offload.forward_hooks, *offload.backward_hooks, offload.fwd_pre_hook]
    handles += [engine.module_forward_pre_hook, engine.module_forward_post_hook]
    return without_hooks(engine.module.modules(), {handle.id for handle in handles})
