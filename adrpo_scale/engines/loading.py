"""Steps that engines share: choosing the device, building the model on the meta device with its
adapters, reading initial values by rows, and AdamW."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from adrpo_scale.core import dist
from adrpo_scale.core.errors import ConfigError, WeightsError
from adrpo_scale.engines.adapters import add_adapters, is_adapter, original_name, trained_name
from adrpo_scale.engines.base import EngineConfig, OptimizerConfig
from adrpo_scale.engines.spec import ModelSpec
from adrpo_scale.hub.misfits import shape_remedy
from adrpo_scale.hub.soundness import loading
from adrpo_scale.hub.weights import check_coverage, check_finite, initial_uniform


def prepare_device(config: EngineConfig) -> torch.device:
    """This rank's device. Also sets the process's CPU threads and deterministic kernels."""
    kind = config.torch_device()
    if kind == "cpu":
        torch.set_num_threads(config.threads)
    if config.deterministic:
        # cuBLAS reads this at its first handle; deterministic matmuls raise without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    return (
        torch.device(kind, dist.rank_facts().local_rank) if kind == "cuda" else torch.device(kind)
    )


def build_on_meta(spec: ModelSpec, *, trained: bool) -> nn.Module:
    """The model with its adapters, parameters on the meta device.

    Adapters are added before sharding: the gradients of later ones would not be reduced.
    Raises WeightsError unless `spec.weights` has exactly the model's tensors, in names and shapes.
    """
    from accelerate import init_empty_weights

    with loading(spec.weights.folder, "config"), init_empty_weights(include_buffers=False):
        model = spec.build()
    spec.tie(model)
    model.requires_grad_(trained)
    if trained and spec.lora is not None:
        second = spec.reference_adapter
        add_adapters(model, spec.lora, spec.lora_targets, with_reference=second)
    check_weights(model, spec)
    return model


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers, by name; tied parameters appear once."""
    persistent = set(model.state_dict())
    buffers = {n: b for n, b in model.named_buffers() if n in persistent}
    return {**dict(model.named_parameters()), **buffers}


def check_weights(model: nn.Module, spec: ModelSpec) -> None:
    """Raises WeightsError on every rank where names or shapes of weights are not the model's."""
    tensors = {original_name(n): t for n, t in stored_tensors(model).items() if not is_adapter(n)}
    check_coverage(tensors, spec.weights.names(), spec.weights.folder)
    for name, tensor in tensors.items():
        # Loading reads rows, so it would accept a tensor with too many of them.
        expected = tensor[-1:] if tensor.ndim else tensor
        last = spec.weights.read(name, max(0, len(tensor) - 1) if tensor.ndim else 0)
        if last.shape != expected.shape:
            raise WeightsError(
                f"{spec.weights.folder}: {name} does not have the model's shape "
                f"{list(tensor.shape)}; {shape_remedy(last.numel() == 0)}"
            )


def first_values(
    name: str, shape: tuple[int, ...], spec: ModelSpec, seed: int, start: int, stop: int | None
) -> Tensor:
    """Rows [start, stop) of a tensor of the built model before training, on the CPU.

    Adapters begin as peft's do: A uniform, seeded by name and `seed`, and B zero; a layer's second
    adapter begins like its first. Raises
    WeightsError where the stored rows are not finite.
    """
    if not is_adapter(name):
        values = spec.weights.read(original_name(name), start, stop)
        check_finite(original_name(name), values, spec.weights.folder)
        return values
    if ".lora_A." in name:
        return initial_uniform(trained_name(name), shape, shape[1], seed)[start:stop]
    return torch.zeros(shape)[start:stop]


def load_whole(tensor: Tensor, read: Callable[[], Tensor]) -> None:
    """Fills a tensor that every rank holds whole. Rank 0 reads: 80 processes that each read 15 GB
    would keep a file server busy for minutes. Collective."""
    if dist.is_main():
        tensor.copy_(read())
    dist.broadcast_tensor(tensor)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient, by name. ConfigError where there are none."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError(
            "no parameter of the model requires a gradient, so nothing can be trained: check "
            "train and lora.targets in [domain]"
        )
    return trained


def build_adamw(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(parameters),
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )


def begin_moments(optimizer: torch.optim.AdamW, parameters: Iterable[Tensor]) -> None:
    """Allocates Adam's state, zero, before the first step.

    Every checkpoint then has it, and memory is at its full size before the first rollout.
    """
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter.detach()),
            "exp_avg_sq": torch.zeros_like(parameter.detach()),
        }
