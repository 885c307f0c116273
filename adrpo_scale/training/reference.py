"""The reference: the model from which the penalty keeps the policy from going away.

`base` (the paper): the pretrained model, which never changes. `ema`: a moving average of the
policy. `snapshot`: the policy as it was some iterations ago. A moving reference starts as the
policy and moves at the end of an iteration. What a run logs, limits and exports stays relative to
the base.

The average is kept in float32 slices, as the optimizer's state is, and is rounded into frozen
parameters after each move: those of a second adapter in the policy's layers (LoRA), or of a third
model (full training).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from adrpo_scale.algorithms.base import Algorithm, included_sum
from adrpo_scale.algorithms.terms import DEFAULTS, LikelihoodSettings, Terms, measured
from adrpo_scale.core.bounds import COUNT, NUMBER
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.core.types import Credit
from adrpo_scale.domains.base import Reference
from adrpo_scale.engines.adapters import REFERENCE, adapter_in_use, reference_name
from adrpo_scale.engines.base import Engine


class ReferenceConfig(Section):
    """Settings of the reference; see the module docstring."""

    kind: Literal["base", "ema", "snapshot"] = setting(
        "base",
        "base: the pretrained model; ema: a moving average of the policy; snapshot: an earlier "
        "policy",
        before="base",
    )
    decay: float = setting(
        0.8,
        "ema: reference = decay * reference + (1 - decay) * policy after each iteration",
        before=0.8,
        ge=0,
        lt=1,
    )
    ramp: float | None = setting(
        None,
        "ema: the decay is at most ramp * (iterations done - delay); none: constant",
        before=None,
        gt=0,
        le=NUMBER,
    )
    delay: int = setting(
        0, "ema: the reference equals the policy for that many iterations", before=0, ge=0, le=COUNT
    )
    every: int = setting(
        10, "snapshot: iterations from one snapshot to the next", before=10, ge=1, le=COUNT
    )
    base_coefficient: float = setting(
        0.0,
        "coefficient of a second penalty, the divergence from the base, the same for all samples",
        before=0.0,
        ge=0,
        le=NUMBER,
    )

    @model_validator(mode="after")
    def _settings_fit_the_kind(self) -> ReferenceConfig:
        uses = {"ema": ("decay", "ramp", "delay"), "snapshot": ("every",)}
        defaults = type(self).model_fields
        for kind, names in uses.items():
            changed = [n for n in names if getattr(self, n) != defaults[n].default]
            if changed and self.kind != kind:
                name = changed[0]
                raise ValueError(
                    f'{name} = {getattr(self, name)} with kind = "{self.kind}": it belongs to '
                    f'kind = "{kind}"; set that, or leave {name} out'
                )
        return self

    @property
    def moves(self) -> bool:
        return self.kind != "base"

    def decay_after(self, iteration: int) -> float:
        """The decay of the move after that many iterations, at least 1."""
        if self.kind == "snapshot":
            return 0.0 if iteration % self.every == 0 else 1.0
        if iteration <= self.delay:
            return 0.0
        if self.ramp is None:
            return self.decay
        return min(self.decay, self.ramp * (iteration - self.delay))


class MovingReference:
    """A reference that follows the policy. model: the policy with its second adapter, or a frozen
    model of its own, whose parameters this class fills."""

    def __init__(self, config: ReferenceConfig, engine: Engine, model: nn.Module) -> None:
        self._config, self._engine, self._model = config, engine, model
        self._is_adapter = any(f".{REFERENCE}." in name for name, _ in model.named_parameters())
        self.slices: dict[str, Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Makes the reference the policy as it is now."""
        parts = self._engine.trained_slices()
        self.slices = {name: part.clone() for name, part in parts.items()}
        self.publish()

    def move(self, iteration: int) -> None:
        """Follows the policy after that many iterations."""
        decay = self._config.decay_after(iteration)
        if decay == 1.0:
            return
        parts = self._engine.trained_slices()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.slices.values()), list(parts.values()), 1 - decay)
        self.publish()

    def publish(self) -> None:
        """Rounds the slices into the parameters of the forward pass."""
        self._engine.fill(self._model, self._named())

    def _named(self) -> Mapping[str, Tensor]:
        if not self._is_adapter:
            return self.slices
        return {reference_name(name): part for name, part in self.slices.items()}

    @contextmanager
    def __call__(self) -> Iterator[nn.Module]:
        """`with reference() as model:`, as `domains.base.Reference` has it."""
        if not self._is_adapter:
            yield self._model
            return
        with adapter_in_use(self._model, REFERENCE):
            yield self._model


Pair = tuple[Reference | None, Reference | None]
"""(reference, base) of a pass, as `Domain.terms` takes them; None: not measured in it."""


@dataclass(frozen=True)
class References:
    """What the policy of a run is held to. moving: None where the reference is the base."""

    base: Reference
    moving: MovingReference | None = None
    base_coefficient: float = 0.0

    @property
    def reference(self) -> Reference:
        return self.base if self.moving is None else self.moving

    def measured(self, *, is_needed: bool, is_logged: bool, is_first: bool) -> Pair:
        """The models that a pass measures. is_needed: the algorithm's loss needs the reference.
        is_logged: the iteration's divergence is logged even where it does not. is_first: the pass
        is one of the first draw of the first update, which is enough for the log."""
        is_held = self.base_coefficient > 0
        if self.moving is None:
            return (self.base if is_needed or is_logged or is_held else None), None
        base = self.base if is_held or (is_first and (is_logged or is_needed)) else None
        return (self.moving if is_needed else None), base

    def penalty(self, terms: Terms, credit: Credit, algorithm: Algorithm) -> Tensor | float:
        """The second penalty of a micro-batch, before the division by the global count:
        base_coefficient times the sum of its rows' divergences from the base; of a pair, the mean
        of its two."""
        if self.base_coefficient == 0:
            return 0.0
        config = algorithm.config
        settings = config if isinstance(config, LikelihoodSettings) else DEFAULTS
        found = terms.divergence if self.moving is None else terms.base_divergence
        values_N = measured(found(settings), "the divergence from the base")
        return self.base_coefficient * included_sum(values_N, credit) / algorithm.rows_per_unit
