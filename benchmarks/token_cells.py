"""The runs of `token_regularisers`, listed before the first of them ran.

A choice and its report share no seed, no prompt and no run. The list holds what the claims may rest
on; the rules by which settings are chosen and compared stand in `token_tables`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import combinations, cycle, permutations

import numpy as np

from adrpo_scale.demo.text import rm_task

ITERATIONS, MEASURED, SAMPLES = 120, (100, 110, 120), 2
PROMPTS = 256  # of A, and of B
SEEDS = {"choose": range(5), "report": range(5, 10), "second": range(5, 10)}
BETAS = (0.2, 0.4, 0.8)  # the settings of a regulariser that are chosen from
FRONT = (0.1, 0.3, 0.6, 1.2)  # more constants, for comparisons at equal divergence alone
TARGETS = (
    0.06,
    0.12,
)  # of controllers, nats a token: constants of .8, .4 and .2 have .04, .11, .29
BOUNDS = (0.04, 4.0)  # of their beta0, which starts at .4


@dataclass(frozen=True)
class Setting:
    """target: of a controller; None: beta0 stays."""

    shape: str
    sign: str
    beta0: float
    estimator: str = "k3"
    target: float | None = None

    @property
    def family(self) -> str:
        """The settings that one is chosen from."""
        names = [self.shape] if self.shape == "constant" else [self.shape, self.sign]
        names += ["controller"] if self.target is not None else []
        return "-".join([*names, self.estimator])

    @property
    def is_constant(self) -> bool:
        return self.shape == "constant" and self.target is None

    @property
    def strength(self) -> float:
        return self.beta0 if self.target is None else self.target

    @property
    def is_choice(self) -> bool:
        """Whether a family's chosen setting may be this one."""
        return self.target is not None or self.beta0 in BETAS

    @property
    def name(self) -> str:
        return f"{self.family}-{self.strength:g}"

    @property
    def overrides(self) -> list[str]:
        """On top of configs/demo/text_rm_grpo.toml, which has a constant."""
        found = [f"algorithm.beta0={self.beta0}", f"algorithm.kl_estimator={self.estimator}"]
        if self.shape != "constant":
            found += ["algorithm.name=adrpo", "algorithm.advantage_clip=1.0"]
            found += [f"regulariser.shape={self.shape}", f"regulariser.sign={self.sign}"]
        if self.target is not None:
            values = zip(("target", "low", "high"), (self.target, *BOUNDS), strict=True)
            found += [f"regulariser.controller.{key}={value}" for key, value in values]
        return found


SETTINGS = (
    *(Setting("constant", "", beta0) for beta0 in sorted({*BETAS, *FRONT})),
    *(
        Setting(shape, sign, beta0)
        for shape in ("clip", "tanh", "rank")
        for sign in ("paper", "opposite")
        for beta0 in BETAS
    ),
    *(
        Setting(*kind, 0.4, target=target)
        for kind in (("constant", ""), ("tanh", "opposite"))
        for target in TARGETS
    ),
    # Whether the opposite sign, if it is better, only mends k3, which pulls bad samples up.
    *(
        Setting("constant", "", beta0, estimator)
        for estimator in ("k2", "exact")
        for beta0 in sorted({*BETAS, 0.1, 1.2})
    ),
    *(
        Setting("tanh", "opposite", beta0, estimator)
        for estimator in ("k2", "exact")
        for beta0 in BETAS
    ),
)


@dataclass(frozen=True)
class Cell:
    """One run. setting None: the base, measured without training."""

    stage: str
    setting: Setting | None
    seed: int

    @property
    def name(self) -> str:
        middle = "base" if self.setting is None else self.setting.name
        return f"{self.stage}.{middle}.{self.seed}"


def cells() -> list[Cell]:
    """All runs that there can be: 45 settings × 2 stages × 5 seeds, those that a choice is from
    also in `choose`, and the base of each stage."""
    found = [Cell(stage, None, seeds[0]) for stage, seeds in SEEDS.items()]
    # Seeds outside, so that what is there of an interrupted sweep has every setting.
    for place in range(5):
        for stage, seeds in SEEDS.items():
            some = [s for s in SETTINGS if s.is_choice or stage != "choose"]
            found += [Cell(stage, setting, seeds[place]) for setting in some]
    return found


def first_round(is_why: bool) -> list[Cell]:
    """What needs no choice: bases, the stage `choose`, and the constants of fronts. is_why: of k2
    and the exact KL, which are asked only if an opposite sign is better under k3."""
    return [
        cell
        for cell in cells()
        if cell.setting is None
        or (
            (cell.setting.estimator != "k3") == is_why
            and (cell.stage == "choose" or cell.setting.is_constant)
        )
    ]


def second_round(chosen: Collection[Setting]) -> list[Cell]:
    """The chosen settings, on other seeds and prompts and on both reward models."""
    return [cell for cell in cells() if cell.stage != "choose" and cell.setting in chosen]


def prompts_of(stage: str) -> list[str]:
    """The prompts that a stage is measured on: unseen things with sets of aspects, first each once,
    then in other orders of their aspects. A and B have half of them each."""
    train, _ = rm_task.split_prompts()
    seen = {(prompt.thing, frozenset(prompt.aspects)) for prompt in train}
    every = [
        (thing, aspects)
        for thing in rm_task.THINGS
        for count in (2, 3)
        for aspects in combinations(rm_task.ASPECTS, count)
        if (thing, frozenset(aspects)) not in seen
    ]
    mixed = [every[i] for i in np.random.default_rng(0).permutation(len(every))]
    mine = mixed[0::2] if stage == "choose" else mixed[1::2]
    orders = [(thing, iter(permutations(aspects))) for thing, aspects in mine]
    found: list[str] = []
    for thing, left in cycle(orders):
        if len(found) == PROMPTS:
            return found
        if aspects := next(left, None):
            found.append(rm_task.ReviewPrompt(thing, aspects).text)
    raise ValueError("no prompt is unseen")
