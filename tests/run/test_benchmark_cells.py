"""The runner of benchmarks with many cells, and the cells of the one on images."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import pytest

from adrpo_scale.run.load import load_config
from benchmarks.cells import Cell, Job, Shelf, crossing, interval
from benchmarks.image_cells import PARTS, Part

CELL = Cell("a", "configs/demo/dice_adrpo.toml", ("iterations=3",))


def test_a_crossing_lies_on_the_line_between_two_evaluations() -> None:
    assert crossing([0.0, 1.0, 3.0], [0.2, 0.4, 0.8], 2.0) == pytest.approx(0.6)
    assert crossing([0.0, 1.0, 3.0], [0.2, 0.4, 0.8], 1.0) == pytest.approx(0.4)


def test_a_crossing_is_the_first_one() -> None:
    assert crossing([0.0, 2.0, 0.5, 2.0], [0.0, 1.0, 7.0, 9.0], 1.0) == pytest.approx(0.5)


def test_what_is_not_reached_or_not_a_number_has_no_crossing() -> None:
    assert crossing([0.0, 1.0], [0.2, 0.4], 1.5) is None
    assert crossing([0.0, None, 3.0], [0.2, 0.4, 0.8], 2.0) is None


def test_an_interval_is_that_of_student() -> None:
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5))
    assert math.isnan(interval([1.0])[1])


def test_a_record_is_read_again_from_either_file(tmp_path: Path) -> None:
    job = Job(CELL, 4, ())
    record = {"name": job.name, "config": CELL.config, "set": job.settings}
    cell = tmp_path / "cells" / f"{job.name}.json"
    cell.parent.mkdir()
    cell.write_text(json.dumps(record))
    Shelf.read(tmp_path).add(job.name)
    cell.unlink()
    shelf = Shelf.read(tmp_path)
    assert shelf.has(job)
    assert shelf.of(CELL, (3, 4)) == {4: record}


def test_a_record_of_other_settings_is_an_error(tmp_path: Path) -> None:
    job = Job(CELL, 4, ())
    cell = tmp_path / "cells" / f"{job.name}.json"
    cell.parent.mkdir()
    cell.write_text(json.dumps({"name": job.name, "config": CELL.config, "set": ["seed=4"]}))
    with pytest.raises(ValueError, match="choose another folder"):
        Shelf.read(tmp_path).has(job)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_cell_is_a_config_and_every_pair_has_both_cells(part: Part) -> None:
    names = [cell.name for cell in part.cells]
    assert len(set(names)) == len(names) <= 24
    assert {name for pair in part.pairs for name in pair} <= set(names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of GRPO's range in the demos' own setting
        digests = {load_config(Path(c.config), c.settings).config.digest() for c in part.cells}
    assert len(digests) == len(names)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_every_cell_is_in_a_panel(part: Part) -> None:
    begins = tuple(begin for _, prefixes in part.panels for begin in prefixes)
    assert [cell.name for cell in part.cells if not cell.name.startswith(begins)] == []
