"""The table and the paths that `train` prints at the end of a run."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path

from rich.table import Table

from adrpo_scale.core.console import say, show
from adrpo_scale.core.run_rows import EVALUATIONS, Row, evaluation_rows
from adrpo_scale.run import figures, tables
from adrpo_scale.run.prompt_sets import sets_text

log = logging.getLogger(__name__)


def summarise(run: Path, lost: str = "") -> None:
    """Prints the table before/after and the paths of the output; writes curves.png. lost: of
    `Trainer.lost`, which is the last line."""
    rows = evaluation_rows(run / EVALUATIONS)
    if any(row["value"] is not None for row in rows):
        table = Table("metric", "split", "before", "after", "change", title="before and after")
        for split, metric, before, after in tables.before_after(rows):
            change = None if before is None or after is None else after - before
            table.add_row(metric, split, _number(before), _number(after), _number(change, "+"))
        show(table)
        say(f"after: mean of the last {tables.LAST} evaluations")
        sets = sets_text(run)
        if sets:
            say(f"prompts: {sets}")
        _draw(rows, run / "curves.png")
    if (run / "samples").is_dir():
        say(f"samples:      {run / 'samples'}")
    say(f"TensorBoard:  tensorboard --logdir {shlex.quote(str(run / 'tensorboard'))}")
    if lost:
        log.warning("%s; an earlier checkpoint may be the better one", lost)


def _draw(rows: list[Row], path: Path) -> None:
    """Draws the curves. The run is done and saved: a full disk is no error of it any more."""
    try:
        figures.curves([rows], path)
    except OSError as error:
        log.warning("%s cannot be written: %s; `adrpo-scale report --curves` draws it", path, error)
    else:
        say(f"curves:       {path}")


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"
