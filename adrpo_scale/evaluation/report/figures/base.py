"""What a figure is, and how one is said to be missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adrpo_scale.evaluation.report.evaluated import Evaluated


@dataclass(frozen=True)
class Figure:
    """A picture of runs. name: of its files, and in the list of figures. caption: what is drawn,
    from which numbers, with which errors; plain text. svg, png: the same picture; the same runs
    give the same bytes."""

    name: str
    title: str
    caption: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class LeftOut:
    """A figure that these runs have no data for. reason: what is absent, and what records it."""

    name: str
    reason: str


Maker = Callable[[Sequence[Evaluated]], Figure | LeftOut]
