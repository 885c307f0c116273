"""LoRA adapters (peft). The policy is the base with its adapter on, and the base with it off.

A moving reference is a second, frozen adapter in the same layers. The weights of the first are
never exchanged for others inside a pass: ZeRO-3 keeps gathered parameters whole, so the policy
would then answer with the reference's weights.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.printable import shown
from adrpo_scale.engines.spec import LoraConfig

BASE_MARK = ".base_layer"  # peft moves a wrapped layer's own weights under this name
TRAINED, REFERENCE = "default", "reference"  # names of the adapters of a layer


def add_adapters(
    model: nn.Module,
    config: LoraConfig,
    targets: tuple[str, ...] | str,
    *,
    with_reference: bool = False,
) -> None:
    """Wraps the target layers of `model` in place and freezes everything but the adapters.

    with_reference: adds a second adapter to each layer, which is frozen and takes no part in a
    pass outside `adapter_in_use`.
    """
    import peft  # here: it takes seconds, and commands that build no model need it not

    model.requires_grad_(False)
    usual = targets if isinstance(targets, str) else list(targets)
    lora = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=config.targets or usual
    )
    names = [TRAINED, REFERENCE] if with_reference else [TRAINED]
    # The adapters stay on the meta device like the model; the engine loads their values.
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # two are meant
            for name in names:
                peft.inject_adapter_in_model(lora, model, name, low_cpu_mem_usage=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(_misfit(model, config.targets, str(error))) from error
    for layer in _adapted_layers(model):
        layer._active_adapter = [TRAINED]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name) and not is_reference_adapter(name))


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


def is_reference_adapter(name: str) -> bool:
    """True for the name of a parameter of the frozen second adapter."""
    return is_adapter(name) and f".{REFERENCE}." in name


def reference_name(name: str) -> str:
    """The name, in the second adapter, of a parameter of the first."""
    return name.replace(f".{TRAINED}.", f".{REFERENCE}.")


def trained_name(name: str) -> str:
    """The name, in the first adapter, of a parameter of the second; others as they are."""
    return name.replace(f".{REFERENCE}.", f".{TRAINED}.") if is_reference_adapter(name) else name


def original_name(name: str) -> str:
    """The parameter's name before adapters were added."""
    return name.replace(BASE_MARK, "")


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """A context in which forward passes use the base weights alone.

    Raises ValueError for a model without adapters.
    """
    with _every_layer_with(model, "_disable_adapters", True):
        yield


@contextmanager
def adapter_in_use(model: nn.Module, adapter: str) -> Iterator[None]:
    """A context in which forward passes use the named adapter of each layer.

    Raises ValueError for a model without adapters.
    """
    with _every_layer_with(model, "_active_adapter", [adapter]):
        yield


@contextmanager
def _every_layer_with(model: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """A context in which every adapted layer has that value, which its forward reads.

    peft's own switches also flip requires_grad of every adapter parameter, which a sharding engine
    has already recorded.
    """
    layers = _adapted_layers(model)
    if not layers:
        raise ValueError("this needs a model with adapters: without them it would change nothing")
    before = [getattr(layer, attribute) for layer in layers]
    for layer in layers:
        setattr(layer, attribute, value)
    try:
        yield
    finally:
        for layer, old in zip(layers, before, strict=True):
            setattr(layer, attribute, old)


def _adapted_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
