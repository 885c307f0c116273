"""Values in a model's JSON files that parse, and that nothing can be done with: the folder is
named, and nothing is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adrpo_scale.core.errors import DamagedFileError
from adrpo_scale.core.paths import resolve_path
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.soundness import check_models
from tests.support.tiny import demo_config
from tests.support.tiny_text import text_config


def changed(path: Path, key: str, value: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | {key: value}))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("generation_config.json", "eos_token_id", [{}]),
        ("tokenizer_config.json", "model_max_length", [1, "x"]),
        ("config.json", "num_hidden_layers", "x"),
        ("config.json", "hidden_size", -1),
        ("config.json", "pad_token_id", {"a": 1}),
    ],
)
def test_odd_values_of_a_language_model(tmp_path, file, key, value):
    config = text_config(tmp_path / "model")
    changed(tmp_path / "model" / file, key, value)
    with pytest.raises(DamagedFileError, match=str(tmp_path / "model")):
        check_models([], build_domain(config))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("scheduler/scheduler_config.json", "shift", []),
        ("vae/config.json", "block_out_channels", 1.5),
        ("transformer/config.json", "patch_size", "x"),
        ("transformer/config.json", "num_layers", {}),
    ],
)
def test_odd_values_of_a_pipeline(tmp_path, file, key, value):
    folder = shutil.copytree(resolve_path("demo:image"), tmp_path / "model")
    changed(folder / file, key, value)
    with pytest.raises(DamagedFileError, match=str(folder)):
        check_models([], build_domain(demo_config(overrides=[f"domain.model={folder}"])))
