"""What a machine with GPUs is asked first runs here too: every step, as a dry run on the CPU."""

from __future__ import annotations

import pytest

from tests.gpu.steps.base import NOT_RUN, PASS
from tests.gpu.steps.tables import TABLES
from tests.support.dry_steps import dry
from tests.support.ranks import run_ranks

pytestmark = pytest.mark.slow
STEPS = [(table, step.name) for table, steps in TABLES.items() for step in steps]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What a step leaves there, later ones find."""
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("table", "name"), STEPS)
def test_a_dry_run_of_a_step_gives_its_verdict(table, name, tmp_path, models):
    """The step `pytest` has no test that runs without a GPU."""
    (found,) = run_ranks(dry, 1, table, name, tmp_path, models, grouped=False, timeout=540)
    expected = NOT_RUN if name == "pytest" else PASS
    assert found["verdict"] == expected, found
    assert found["checks"] or name == "pytest"
