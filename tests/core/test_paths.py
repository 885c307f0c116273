"""Names of demo assets."""

from __future__ import annotations

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.paths import resolve_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [("demo:imag", "demo:image"), ("demo:txt/prompts/train.jsonl", "demo:text/prompts/train")],
)
def test_a_misspelt_asset_is_answered_with_the_nearest_file_or_folder(given, meant):
    with pytest.raises(ConfigError, match=f"{given}: no such demo asset. Did you mean {meant}"):
        resolve_path(given)
