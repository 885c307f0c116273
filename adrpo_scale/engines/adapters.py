"""LoRA adapters (peft). With them switched off, the policy is the reference."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.printable import shown
from adrpo_scale.engines.spec import LoraConfig

BASE_MARK = ".base_layer"  # peft moves a wrapped layer's own weights under this name


def add_adapters(model: nn.Module, config: LoraConfig, targets: tuple[str, ...] | str) -> None:
    """Wraps the target layers of `model` in place and freezes everything but the adapters."""
    import peft  # here: it takes seconds, and commands that build no model need it not

    model.requires_grad_(False)
    usual = targets if isinstance(targets, str) else list(targets)
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=config.targets or usual
    )
    # The adapters stay on the meta device like the model; the engine loads their values.
    try:
        peft.inject_adapter_in_model(lora, model, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(_misfit(model, config.targets, str(error))) from error
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def _misfit(model: nn.Module, targets: list[str], why: str) -> str:
    """The error of targets that peft refuses: modules that are not there, or no linear layers."""
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    ends = sorted({name.rpartition(".")[2] for name in linear})
    near = [near for name in targets for near in difflib.get_close_matches(name, ends, n=1)]
    hint = f"did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    return (
        f"domain.lora.targets = {shown(targets)} does not fit {type(model).__name__}: {hint}"
        f"linear layers here: {', '.join(ends)} (peft: {shown(why, quote=False)})"
    )


def is_adapter(name: str) -> bool:
    """True for the name of an adapter's parameter."""
    return ".lora_A." in name or ".lora_B." in name


def original_name(name: str) -> str:
    """The parameter's name before adapters were added."""
    return name.replace(BASE_MARK, "")


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """A context in which forward passes use the base weights alone.

    peft's own switch also flips requires_grad of every adapter parameter, which a sharding engine
    has already recorded. This one sets only the flag that forward reads.
    Raises ValueError for a model without adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    if not layers:
        raise ValueError(
            "adapters_off() needs a model with adapters: without them it would change nothing"
        )
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value
