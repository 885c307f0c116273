"""The page for installing names the drivers that preflight asks for."""

from __future__ import annotations

import re
from pathlib import Path

from adrpo_scale.cluster.preflight.gpu_checks import MINIMUM_DRIVER

ROOT = Path(__file__).parents[2]


def test_the_drivers_of_the_page_are_those_that_preflight_asks_for():
    page = (ROOT / "docs" / "start" / "install.md").read_text()
    section = page.partition("## The driver of the GPUs")[2].partition("\n## ")[0]
    majors = {cuda: int(driver.split(".")[0]) for cuda, driver in MINIMUM_DRIVER.items()}
    assert f"| {majors['13']} or newer |" in section
    assert f"| {majors['12']} to {majors['13'] - 1} | a build for CUDA 12" in section
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert f"torch {pinned.partition('+')[0]}, CUDA 13" in section
