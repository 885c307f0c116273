"""The cells of `image_references`: reference × regulariser, listed before the first run.

A family has one reference and one range of the advantage, and a control with a constant
coefficient (GRPO); the others are compared with it seed by seed. A ranges over ± c in units of
beta0: c = 1 is the demos' own setting, and at c = .45 every shape with either sign has a loss with
a lower bound. rank needs a floor above c; for A >= 0 it needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.cells import Cell

DICE, IMAGE = "configs/demo/dice_adrpo.toml", "configs/demo/image_adrpo.toml"
SEEDS = (1, 2, 3, 4, 5)  # seed 0 had a part in the choice of both demos' settings

REFERENCES = {
    "base": ("reference.kind=base",),
    "ema": ("reference.kind=ema", "reference.decay=0.8"),
    "snapshot": ("reference.kind=snapshot", "reference.every=10"),
}
SHAPES = {
    "constant": ("algorithm.name=grpo",),
    "clip-paper": ("regulariser.shape=clip", "regulariser.sign=paper"),
    "clip-opposite": ("regulariser.shape=clip", "regulariser.sign=opposite"),
    "tanh-paper": ("regulariser.shape=tanh", "regulariser.sign=paper"),
    "tanh-opposite": ("regulariser.shape=tanh", "regulariser.sign=opposite"),
    "rank-paper": ("regulariser.shape=rank", "regulariser.sign=paper"),
    "rank-opposite": ("regulariser.shape=rank", "regulariser.sign=opposite"),
}
RANGES = {  # of the advantage, in units of beta0
    "c1": (),  # advantage_min and advantage_max of the demos' files
    "c.45": ("algorithm.advantage_clip=0.45",),
    "up": ("algorithm.advantage_clip=[0.0, 1.0]",),
}
FLOOR = ("regulariser.floor=0.5",)
FIRST_SIX = ("constant", "clip-paper", "clip-opposite", "tanh-paper", "tanh-opposite", "rank-paper")


@dataclass(frozen=True)
class Family:
    """Cells that differ in the regulariser alone; the first shape is the control."""

    name: str
    reference: str
    limits: str
    shapes: tuple[str, ...]
    more: tuple[str, ...] = ()

    def settings(self, shape: str) -> tuple[str, ...]:
        floor = FLOOR if shape.startswith("rank") and self.limits == "c.45" else ()
        return (*REFERENCES[self.reference], *SHAPES[shape], *RANGES[self.limits], *floor)


@dataclass(frozen=True)
class Part:
    """One demo. common: settings of all its runs. levels: of w2_sum, where runs are compared.
    pairs: (cell, the one that it is compared with). panels: of the figure, (title, how the names of
    its cells begin)."""

    name: str
    config: str
    common: tuple[str, ...]
    levels: tuple[float, ...]
    cells: tuple[Cell, ...]
    pairs: tuple[tuple[str, str], ...]
    panels: tuple[tuple[str, tuple[str, ...]], ...]


def cells_of(config: str, common: tuple[str, ...], families: tuple[Family, ...]) -> list[Cell]:
    return [
        Cell(f"{f.name}-{shape}", config, (*common, *f.settings(shape), *f.more))
        for f in families
        for shape in f.shapes
    ]


def pairs_of(families: tuple[Family, ...]) -> list[tuple[str, str]]:
    return [
        (f"{f.name}-{shape}", f"{f.name}-{f.shapes[0]}") for f in families for shape in f.shapes[1:]
    ]


EVALUATION = ("evaluation.every=5", "logging.pictures_every=0", "logging.histograms_every=0")
ONE_SAVE = ("checkpoint.every_iterations=1000",)

DICE_FAMILIES = (
    Family("ema-c.45", "ema", "c.45", FIRST_SIX),
    Family("ema-c1", "ema", "c1", ("constant", "clip-paper", "tanh-paper")),
    Family("ema-up", "ema", "up", ("constant", "rank-paper", "rank-opposite")),
    Family("base-c.45", "base", "c.45", FIRST_SIX),
    Family("base-c1", "base", "c1", ("constant", "clip-paper")),
    Family("base-.2", "base", "c.45", ("constant", "clip-paper"), ("algorithm.beta0=0.2",)),
    Family("snapshot-c.45", "snapshot", "c.45", ("constant", "clip-paper")),
)
DICE_COMMON = (*EVALUATION, *ONE_SAVE, "evaluation.samples_per_prompt=16")
DICE_PART = Part(
    "dice",
    DICE,
    DICE_COMMON,
    (0.25, 0.5, 1.0, 2.0, 4.0, 6.0),
    tuple(cells_of(DICE, DICE_COMMON, DICE_FAMILIES)),
    (
        *pairs_of(DICE_FAMILIES),
        ("ema-c.45-clip-opposite", "ema-c.45-clip-paper"),
        ("ema-c.45-tanh-opposite", "ema-c.45-tanh-paper"),
        ("ema-up-rank-opposite", "ema-up-rank-paper"),
        ("base-c.45-clip-opposite", "base-c.45-clip-paper"),
        ("base-c.45-tanh-opposite", "base-c.45-tanh-paper"),
        ("ema-c.45-constant", "base-c.45-constant"),
        ("ema-c.45-clip-paper", "base-c.45-clip-paper"),
        ("snapshot-c.45-constant", "ema-c.45-constant"),
    ),
    (
        ("moving average, A within ± .45", ("ema-c.45",)),
        ("the base, A within ± .45", ("base-c.45",)),
        ("moving references, other ranges", ("ema-c1", "ema-up", "snapshot")),
        ("the base, other ranges", ("base-c1", "base-.2")),
    ),
)

HACKING = (  # of `make demo-hacking`
    "iterations=40",
    "algorithm.scale=group_std",
    "optimizer.learning_rate=1e-2",
    "optimizer.updates=1",
    "optimizer.draws_per_sample=4",
)
HACKING_COMMON = (
    *HACKING,
    *EVALUATION,
    *ONE_SAVE,
    "evaluation.prompts=24",
    "evaluation.samples_per_prompt=6",
)
HACKING_FAMILIES = (
    Family("ema-c.45", "ema", "c.45", FIRST_SIX[:5]),
    Family("ema-c1", "ema", "c1", ("constant", "clip-paper")),
    Family("ema-up", "ema", "up", ("constant",)),
    Family("base-c.45", "base", "c.45", ("constant", "clip-paper")),
)
JUDGE = 'rewards=[{kind="clip",model="demo:image/reward_clip"},'
JUDGE += '{kind="glyph_checker",name="checker",use="evaluation"},'
JUDGE += '{kind="glyph_checker",name="graded",graded=true,use="gate"}]'
DEMO = ("ema", "clip-paper", "c1")


def hacked(name: str, reference: str, shape: str, limits: str, *more: str) -> Cell:
    """A cell with a remedy, on the hacking demo."""
    family = Family(name, reference, limits, (shape,), more)
    return Cell(name, IMAGE, (*HACKING_COMMON, *family.settings(shape), *more))


CONTROLLER = ("regulariser.controller.low=1.0", "regulariser.controller.high=10.0")
REMEDIES = (
    hacked("hold-.1", *DEMO, "reference.base_coefficient=0.1"),
    hacked("hold-1", *DEMO, "reference.base_coefficient=1.0"),
    hacked("controller", *DEMO, *CONTROLLER, "regulariser.controller.target=0.0005"),
    hacked("gate-over", "ema", "constant", "c.45", JUDGE, *FLOOR, "regulariser.gate.share=1.0"),
    hacked(
        "gate-under",
        *("ema", "constant", "c.45", JUDGE, *FLOOR, "regulariser.gate.share=1.0"),
        "regulariser.gate.side=underrated",
    ),
    hacked("gate-up", "ema", "constant", "up", JUDGE, "regulariser.gate.share=1.0"),
)
HACKING_PART = Part(
    "hacking",
    IMAGE,
    HACKING_COMMON,
    (0.25, 0.5, 1.0, 2.0, 4.0),
    (*cells_of(IMAGE, HACKING_COMMON, HACKING_FAMILIES), *REMEDIES),
    (
        *pairs_of(HACKING_FAMILIES),
        ("ema-c.45-clip-opposite", "ema-c.45-clip-paper"),
        ("base-c.45-clip-paper", "ema-c.45-clip-paper"),
        ("hold-.1", "ema-c1-clip-paper"),
        ("hold-1", "ema-c1-clip-paper"),
        ("controller", "ema-c1-clip-paper"),
        ("gate-over", "ema-c.45-constant"),
        ("gate-under", "ema-c.45-constant"),
        ("gate-up", "ema-up-constant"),
    ),
    (
        ("moving average, A within ± .45", ("ema-c.45",)),
        ("the base as the reference, and ± 1", ("base", "ema-c1")),
        ("remedies", ("ema-c1-clip-paper", "hold", "controller", "gate", "ema-up")),
    ),
)
PARTS = {part.name: part for part in (DICE_PART, HACKING_PART)}
