"""The order of test files: the longest first, so that no worker of pytest-xdist is left idle.

pytest-xdist begins with the files that have the most tests, which are the quick ones.
`python -m pytest -p tests.support.processor_time` says when this list is out of date.
"""

from __future__ import annotations

import pytest

LONGEST = (  # by processor time, the longest first
    # The slow suite. Jobs of Slurm wait for much of their time, so they stand beside what computes.
    "tests/slurm/test_whole_jobs.py",
    "tests/slow/test_image_demo.py",
    "tests/slow/test_text_demo.py",
    "tests/slow/test_crash_points.py",
    "tests/slow/test_audio_demo.py",
    "tests/slurm/test_refusals.py",
    "tests/slow/test_chaos.py",
    # The quick one.
    "tests/run/test_resume.py",
    "tests/engines/test_updates.py",
    "tests/export/pictures",
    "tests/training/test_text_training.py",
    "tests/cluster/test_preflight_ranks.py",
    "tests/engines/test_sharding.py",
    "tests/training/test_training.py",
    "tests/cluster/test_plan",
    "tests/training/test_audio_training.py",
    "tests/run/test_text_resume.py",
    "tests/docs",
    "tests/export/test_export_text.py",
    "tests/export/clips",
    "tests/cli/test_cli.py",
    "tests/run/test_faults.py",
    "tests/hub/test_prefetch.py",
    "tests/evaluation/test_mmau.py",
    "tests/cluster/test_trial.py",
    "tests/engines/test_small_models.py",
    "tests/data/test_prepare_avqa.py",
    "tests/run/test_old_runs.py",
)
TOGETHER = (
    "tests/export/pictures",
    "tests/export/clips",
)  # folders whose files share what takes long to make


def scope(nodeid: str) -> str:
    """What one worker runs as a whole: a file, or a folder of TOGETHER."""
    file = nodeid.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)


def place(nodeid: str) -> int:
    """Where a test stands in the order."""
    found = (n for n, start in enumerate(LONGEST) if nodeid.startswith(start))
    return next(found, len(LONGEST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid))  # stable: in a file nothing changes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """For every `--dist`; without pytest-xdist nobody calls it."""
    from xdist.scheduler import LoadFileScheduling

    class ByScope(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid)

    config.option.loadscopereorder = False
    return ByScope(config, log)
