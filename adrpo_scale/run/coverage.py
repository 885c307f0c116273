"""Which share of its prompts a run uses, recorded in its folder: `coverage.json`.

A file that `prepare` wrote says in report.json beside it how many rows the published one lists:
videos that are gone cost their questions. The domain may leave out more, such as a clip that does
not decode. Two runs on different shares are runs on different data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.console import ON_SCREEN
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import number_of, read_object
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prepare.record import RECORD
from adrpo_scale.data.prompt_files import place_of
from adrpo_scale.data.prompts import PromptsConfig

log = logging.getLogger(__name__)

COVERAGE = "coverage.json"
Parts = Sequence[Sequence[Prompt]]  # train, held out


def coverage(config: PromptsConfig, every: Parts, used: Parts) -> list[dict[str, Any]]:
    """A row for each prompt file: `file`, `listed` as published, `rows` of the file, `used` by the
    run. every: all (train, held out) prompts; used: those that the domain can use."""
    counts = [(len(every[k]), len(used[k])) for k in (0, 1)]
    if config.held_out is None:
        counts = [(counts[0][0] + counts[1][0], counts[0][1] + counts[1][1])]
    names = [name for name in (config.train, config.held_out) if name is not None]
    return [
        {"file": name, "listed": listed(name, rows), "rows": rows, "used": count}
        for name, (rows, count) in zip(names, counts, strict=True)
    ]


def listed(name: str, rows: int) -> int:
    """How many rows the published file lists that a prompt file was made from; the file's own
    number where no report.json beside it speaks of as many usable rows."""
    place = place_of(name)
    if place.repository is not None:
        return rows
    try:
        path = resolve_path(place.path)
    except AdrpoError:
        return rows
    found = (read_object(path.parent / RECORD) or {}).get("rows")
    if not isinstance(found, dict) or number_of(found, "usable") != rows:
        return rows
    return max(rows, int(number_of(found, "total")))


def report_coverage(config: PromptsConfig, every: Parts, used: Parts, run: Path) -> None:
    """Writes `coverage.json`, and tells of each file that is not used whole; for rank 0 only."""
    found = coverage(config, every, used)
    for row in found:
        if row["used"] < row["listed"]:
            log.info(
                "%s: %d of %d listed prompts are used (%.1f %%)",
                *(row["file"], row["used"], row["listed"], 100 * row["used"] / row["listed"]),
                extra=ON_SCREEN,
            )
    try:
        replace_json(run / COVERAGE, {"files": found})
    except OSError as error:  # a record alone; the run's own files say what is wrong with the disk
        log.warning("%s cannot be written: %s", run / COVERAGE, error)
