"""The wheel: every file of the package is in it, and it trains a demo away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.starts import TINY
from tests.support.tiny import CONFIGS

ROOT = CONFIGS.parent
ONE = [*TINY, "iterations=1"]


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the installed setuptools from the files that git tracks."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in run("git", "ls-files", "-z", cwd=ROOT).split("\0"):
        if path.startswith(("adrpo_scale/", "pyproject.toml", "README.md", "LICENSE")):
            there = folder / "source" / path
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, there)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    run(sys.executable, "-m", "pip", *build, str(folder / "source"), cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "dist-info" not in name}
    source = wheel.parent / "source"
    tracked = {
        str(p.relative_to(source)) for p in (source / "adrpo_scale").rglob("*") if p.is_file()
    }
    assert packed == tracked


@pytest.mark.slow
def test_the_wheel_trains_a_demo_away_from_the_checkout(wheel, tmp_path):
    site, config = tmp_path / "site", CONFIGS / "demo" / "image_adrpo.toml"
    zipfile.ZipFile(wheel).extractall(site)
    python = {"PYTHONPATH": str(site)}
    where = run(
        sys.executable, "-c", "import adrpo_scale as a; print(a.__file__)", cwd=tmp_path, **python
    )
    assert Path(where.strip()).is_relative_to(site)
    shutil.copy(config, tmp_path)
    settings = [word for setting in ONE for word in ("--set", setting)]
    train = ["-m", "adrpo_scale", "train", config.name, "--run-dir", "run", *settings]
    run(sys.executable, *train, cwd=tmp_path, **python)
    assert (tmp_path / "run" / "checkpoints" / "step-000001").is_dir()
