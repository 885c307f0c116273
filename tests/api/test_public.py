"""`import adrpo_scale`: light, typed, complete; and what opening and training refuse."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import adrpo_scale
from adrpo_scale.cli.main import main
from adrpo_scale.core.errors import RunFolderError
from tests.support.tiny import CONFIGS

DEMO = CONFIGS / "demo" / "image_adrpo.toml"


def test_the_import_alone_loads_nothing():
    heavy = ("torch", "pydantic", "transformers", "numpy")
    code = f"import sys, adrpo_scale; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_is_there_and_no_other():
    assert len(adrpo_scale.__all__) == len(set(adrpo_scale.__all__))
    assert dir(adrpo_scale) == sorted(adrpo_scale.__all__)
    assert issubclass(adrpo_scale.RewardConfig, adrpo_scale.Section)
    with pytest.raises(AttributeError, match="no attribute 'Rewrad'; it has"):
        adrpo_scale.Rewrad  # noqa: B018
    assert (Path(adrpo_scale.__file__).parent / "py.typed").is_file()


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(RunFolderError, match=r"no config\.json, which `train` writes"):
        adrpo_scale.open_run(tmp_path)


def test_overrides_are_of_a_file(tmp_path):
    loaded = adrpo_scale.load_config(DEMO)
    with pytest.raises(TypeError, match="give them to load_config"):
        adrpo_scale.train(loaded, run_dir=tmp_path, overrides=["seed=1"])


def test_the_command_finds_components_in_the_folder_it_is_started_in(tmp_path, monkeypatch, capsys):
    """The script `adrpo-scale` has its own folder on the path, not the one it is started in."""
    (tmp_path / "aside.py").write_text(
        "from adrpo_scale.algorithms.raft import Raft\n\n\nclass Mine(Raft):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    algorithm = "algorithm={name='aside:Mine'}"
    monkeypatch.setattr(sys, "argv", ["adrpo-scale", "config", str(DEMO), "--set", algorithm])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert '"aside:Mine"' in capsys.readouterr().out
