"""Adapters merged into the model that they belong to: what peft computes, in a plain folder."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.cluster.preflight.models import model_findings
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.export.merged_base import ADAPTER_WEIGHTS, RECORD, merge_adapters
from tests.support.tiny_text import save_tiny, text_config

IDS = torch.arange(10, 20)[None]


def with_adapters(folder: Path, to: Path, **settings: object) -> torch.Tensor:
    """Saves adapters of the model in a folder; logits of both together, by peft."""
    torch.manual_seed(3)
    lora = peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, **settings)
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), lora).eval()
    with torch.no_grad():
        expected = adapted(input_ids=IDS).logits
    adapted.save_pretrained(to)
    return expected


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        pytest.param(
            {"target_modules": ["v_proj"], "use_dora": True, "use_rslora": True},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, marks=pytest.mark.slow
        ),
    ],
)
def test_the_merged_folder_is_what_peft_computes(tmp_path: Path, settings: dict) -> None:
    folder = save_tiny(tmp_path / "m")
    expected = with_adapters(folder, folder, **settings)
    merged = tmp_path / "merged"
    line = ["prepare", "merge", str(folder), "--to", str(merged)]
    answer = CliRunner().invoke(cli.app, line, catch_exceptions=False)
    assert answer.exit_code == 0 and "domain.model = " in answer.output
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(merged).eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert model_findings(text_config(merged), Path("none")) == []
    names = {path.name for path in merged.iterdir()}
    assert not [name for name in names if name.startswith("adapter_")]
    assert {path.name for path in folder.glob("*token*")} <= names
    assert json.loads((merged / RECORD).read_text()).keys() == {"base", "adapters"}


def test_adapters_that_do_not_fit_or_change_nothing_are_refused(tmp_path: Path) -> None:
    folder, adapters, to = save_tiny(tmp_path / "m"), tmp_path / "a", tmp_path / "to"
    with_adapters(folder, adapters, target_modules=["q_proj"])

    def refused(words: str) -> None:
        with pytest.raises(AdrpoError, match=words):
            merge_adapters(str(folder), to, adapters)
        assert {path.name for path in tmp_path.iterdir()} <= {"m", "a", "full"}

    file = adapters / ADAPTER_WEIGHTS
    tensors = load_file(file)
    save_file({name: torch.zeros_like(t) for name, t in tensors.items()}, file)
    refused("the adapters change nothing")
    first = min(tensors)
    save_file({name: t for name, t in tensors.items() if name != first}, file)
    refused("does not fit the model: 1 missing")
    save_file(tensors | {first.replace("layers.0", "layers.9"): tensors[first].clone()}, file)
    refused("0 missing .*, 1 unknown|does not fit|cannot be loaded")
    file.unlink()
    refused("has no adapter_model.safetensors")
    (to := tmp_path / "full").mkdir()
    (to / "notes").touch()
    with_adapters(folder, adapters, target_modules=["q_proj"])
    refused("exists and is not empty")
