"""The state of a run that training changes: a checkpoint holds it and a resume restores it.

It has no random generator, because randomness is a function of the counters. Likewise the learning
rate is a function of the step, and the prompts are a function of the cursor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.staging import LocalSets
from adrpo_scale.checkpoint.store import FULL
from adrpo_scale.core.errors import CheckpointError
from adrpo_scale.core.types import Rewards
from adrpo_scale.engines.base import Engine
from adrpo_scale.training.controller import Controller
from adrpo_scale.training.ema import Ema
from adrpo_scale.training.reference import MovingReference


@dataclass
class Counters:
    """The position of a run."""

    iteration: int = 0  # iterations done
    cursor: int = 0  # prompts consumed
    step: int = 0  # optimizer steps, skipped ones included
    nonfinite_in_a_row: int = 0
    evaluated: int = -1  # the last evaluated iteration
    learned: int = 0  # iterations that taught something
    idle: int = 0  # iterations since the last of them

    @classmethod
    def read(cls, stored: Mapping[str, int]) -> Counters:
        """Of a checkpoint; one from before `learned` counts its optimizer steps."""
        return cls(**{"learned": stored["step"], **stored})


@dataclass
class RewardStatistics:
    """Statistics of a reward over all samples of the run. m2: sum of squared deviations."""

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, values: Tensor) -> None:
        """Adds values, float64 [n] (pairwise update of Chan et al., 1979)."""
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        total, delta = self.count + n, mean - self.mean
        self.m2 += float((values - mean).square().sum()) + delta**2 * self.count * n / total
        self.mean += delta * n / total
        self.count = total
        self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))

    @property
    def std(self) -> float:
        return math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0


@dataclass
class TrainingState:
    """See the module docstring. reference: a moving one; None where it is the base. constant: facts
    that each checkpoint of the run carries."""

    engine: Engine
    ema: Ema | None
    reference: MovingReference | None = None
    constant: Mapping[str, Any] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)
    rewards: dict[str, RewardStatistics] = field(default_factory=dict)
    controller: Controller | None = None

    def add_rewards(self, rewards: Rewards) -> None:
        """Adds the rewards of an iteration, without masked samples and those of which a reward
        abstained."""
        for name, plane in zip(rewards.names, rewards.per_reward_RPG, strict=True):
            kept = rewards.mask_PG & plane.isfinite()
            self.rewards.setdefault(name, RewardStatistics()).add(plane[kept])

    def sets(self, kind: str) -> LocalSets:
        """This rank's slices by set. kind: FULL, or WEIGHTS, which leaves the optimizer out."""
        places = self.engine.places()
        sets = {"policy": self.engine.trained_slices()}
        if self.ema is not None:
            sets["ema"] = self.ema.slices
        if kind == FULL:
            sets |= self.engine.moments()
            if self.reference is not None:
                sets["reference"] = self.reference.slices
        return {
            part: {name: (places[name], values) for name, values in slices.items()}
            for part, slices in sets.items()
        }

    def holding(self, weights: str) -> AbstractContextManager[None]:
        """A context with these weights in the policy: `raw`, the trained ones, or `ema`, their
        moving average where there is one."""
        return self.ema.applied() if weights == "ema" and self.ema is not None else nullcontext()

    def document(self) -> dict[str, Any]:
        """The part of the state that is not tensors."""
        return {
            **self.constant,
            "counters": asdict(self.counters),
            "rewards": {name: asdict(s) for name, s in self.rewards.items() if s.count},
            "optimizer_steps": self.engine.optimizer_steps(),
            **({"controller": self.controller.document()} if self.controller else {}),
        }

    def restore(self, reader: Reader) -> None:
        """Takes over a checkpoint, of any engine and number of ranks. Collective."""
        document = reader.manifest.document
        self.load("policy", self.engine.trained_slices(), reader)
        for part, slices in self.engine.moments().items():
            self.load(part, slices, reader)
        if self.ema is not None:
            part = "ema" if "ema" in reader.manifest.sets else "policy"
            self.load(part, self.ema.slices, reader)
        self.engine.publish()
        if self.reference is not None:
            self.load("reference", self.reference.slices, reader)
            self.reference.publish()
        self.engine.set_optimizer_steps(document["optimizer_steps"])
        self.counters = Counters.read(document["counters"])
        self.rewards = {n: RewardStatistics(**s) for n, s in document["rewards"].items()}
        if self.controller is not None:
            self.controller.restore(document.get("controller"))

    def start_from(self, reader: Reader) -> None:
        """Takes over the trained weights alone, for `init_from`: a moving reference starts there
        too. Collective."""
        self.load("policy", self.engine.trained_slices(), reader)
        if self.ema is not None:
            self.load("policy", self.ema.slices, reader)
        self.engine.publish()
        if self.reference is not None:
            self.reference.begin()

    @torch.no_grad()
    def load(self, part: str, slices: Mapping[str, Tensor], reader: Reader) -> None:
        """Fills this rank's slices from the set `part` of a checkpoint. Raises CheckpointError
        unless it has exactly these tensors, in these shapes."""
        places, there = self.engine.places(), set(reader.names(part))
        if there != slices.keys():
            missing, extra = sorted(slices.keys() - there), sorted(there - slices.keys())
            raise CheckpointError(
                f"{reader.folder} does not hold what this run trains: {len(missing)} tensors of "
                f"{part} missing {missing[:3]}, {len(extra)} unknown {extra[:3]}; resume with the "
                "same domain.train, domain.lora and domain.model"
            )
        for name, values in slices.items():
            place = places[name]
            if reader.shape(name, part) != place.shape:
                raise CheckpointError(
                    f"{reader.folder}: {part}/{name} has shape {list(reader.shape(name, part))}, "
                    f"this run's has {list(place.shape)}; resume with the same model and lora.rank"
                )
            values.copy_(reader.read(name, place.start, place.stop, part).view(values.shape))
