"""The figures of a report, by name."""

from __future__ import annotations

from collections.abc import Sequence

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.figures import (
    betas,
    fronts,
    grids,
    learning_curves,
    trajectories,
)
from adrpo_scale.evaluation.report.figures.base import Figure, LeftOut, Maker

FIGURES: dict[str, Maker] = {
    learning_curves.NAME: learning_curves.learning_curves,
    trajectories.OF_DIVERSITY: trajectories.reward_diversity,
    trajectories.OF_DIVERGENCE: trajectories.reward_divergence,
    betas.NAME: betas.beta_histograms,
    fronts.NAME: fronts.fronts,
    grids.NAME: grids.picture_grids,
}


def figures_of(
    runs: Sequence[Evaluated], names: Sequence[str] | None = None
) -> tuple[list[Figure], list[LeftOut]]:
    """(figures, those that the runs have no data for), in the given order. names: None for all.
    ConfigError for a name that is none."""
    unknown = [name for name in names or () if name not in FIGURES]
    if unknown:
        raise ConfigError(f"no figure is called {unknown[0]!r}; figures: {', '.join(FIGURES)}")
    made = [FIGURES[name](runs) for name in names or FIGURES]
    figures = [each for each in made if isinstance(each, Figure)]
    return figures, [each for each in made if isinstance(each, LeftOut)]
