"""A preflight reads a run's prompts as `train` does, and warns of those that encoders cut."""

from __future__ import annotations

import json

from adrpo_scale.cluster.preflight.run import SKIPPABLE, PreflightOptions, preflight
from tests.support.tiny import CONFIGS

LONG = "a red ring and a blue ring and a green ring and a red disc and a "


def stated(config, file, run, capsys):
    """(exit code, the check of the prompts)."""
    settings = [f"prompts.train={file}", "prompts.held_out=null"]
    skipped = frozenset(SKIPPABLE) - {"prompts"}
    path = CONFIGS / "demo" / f"{config}.toml"
    code = preflight(PreflightOptions(path, settings, run, as_json=True, skipped=skipped))
    checks = json.loads(capsys.readouterr().out)["checks"]
    return code, next(check for check in checks if check["name"] == "prompts")


def test_prompts_that_are_cut_are_a_warning(tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("a red ring\n")
    code, check = stated("image_adrpo", file, tmp_path / "run", capsys)
    assert (code, check["state"], check["findings"]) == (0, "fine", [])
    assert check["stated"] == "1 prompt, read whole by every encoder"
    file.write_text(f"a red ring\n{LONG}blue square\n{LONG}green disc\n")
    code, check = stated("image_adrpo", file, tmp_path / "run", capsys)
    cut, alike = (finding["value"] for finding in check["findings"])
    assert (code, check["state"]) == (0, "warning")
    assert cut.startswith("2 of 3 prompts are cut: text_encoder and text_encoder_2 of the model")
    assert alike.startswith("2 different prompts share 1 embedding")


def test_prompts_that_train_refuses_are_a_fault(tmp_path, capsys):
    code, check = stated("text_adrpo", tmp_path / "gone.jsonl", tmp_path / "run", capsys)
    assert (code, check["state"]) == (2, "fault") and "gone.jsonl" in check["findings"][0]["value"]
