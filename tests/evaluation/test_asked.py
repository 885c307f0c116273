"""Evaluation files: what they hold, and faults that are found before anything heavy."""

from __future__ import annotations

from pathlib import Path

import pytest

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.evaluation.file import load_evaluation, results_folder
from adrpo_scale.evaluation.mmau.base import MmauConfig
from tests.support.shipped import EVALUATIONS, name_of
from tests.support.tiny import CONFIGS

FILE = """
benchmark = "images"
[prompts]
file = "demo:image/prompts/held_out.jsonl"
[sampling]
per_prompt = 2
seeds = [0, 1]
[[scorers]]
kind = "clip"
model = "demo:image/reward_clip"
[models.ours]
run = "runs/ours-*"
[models.flux]
pipeline = "black-forest-labs/FLUX.1-dev"
steps = 28
guidance = 3.5
size = 512
dtype = "bfloat16"
"""


def read(tmp_path, text, *overrides):
    path = tmp_path / "table1.toml"
    path.write_text(text)
    return load_evaluation(path, overrides)


def test_a_file_of_pictures(tmp_path, monkeypatch):
    config = read(tmp_path, FILE)
    assert [one.label for one in config.prompts] == ["held_out"]
    assert list(config.rows) == ["ours", "flux"]
    flux = config.models["flux"]
    assert flux.given == {"dtype": "bfloat16", "steps": 28, "guidance": 3.5, "size": 512}
    assert config.models["ours"].given == {}
    monkeypatch.setenv("ADRPO_RUNS", "elsewhere")
    path = tmp_path / "table1.toml"
    assert results_folder(config, path) == Path("elsewhere/evaluations/table1")
    assert results_folder(read(tmp_path, FILE, "to=there"), path) == Path("there")


def test_several_sets_and_a_file_of_text(tmp_path):
    sets = '[[prompts]]\nname = "drawbench"\nfile = "a/prompts.jsonl"\n'
    sets += '[[prompts]]\nfile = "b/prompts.jsonl"'
    text = FILE.replace('[prompts]\nfile = "demo:image/prompts/held_out.jsonl"', sets)
    assert [one.label for one in read(tmp_path, text).prompts] == ["drawbench", "b"]
    text = FILE.partition("[[scorers]]")[0].replace("images", "text")
    text += (
        '[[scorers]]\nkind = "exact_answer"\n'
        '[models.qwen]\npipeline = "a/b"\nchat = { thinking = false }'
    )
    config = read(tmp_path, text, "sampling.max_new_tokens=9", "sampling.top_k=5")
    assert config.models["qwen"].given == {"chat": {"thinking": False}}
    tokens = config.sampling.tokens
    assert (tokens.max_new_tokens, tokens.temperature, tokens.top_k) == (9, 1.0, 5)
    greedy = ["sampling.temperature=0", "sampling.seeds=[0]", "sampling.per_prompt=1"]
    assert read(tmp_path, text, *greedy).sampling.tokens.temperature == 0
    with pytest.raises(ConfigError, match="temperature = 0 is greedy, so that 2 samples a prompt"):
        read(tmp_path, text, "sampling.temperature=0")
    with pytest.raises(ConfigError, match="'float16': Input should be 'float32' or"):
        read(tmp_path, text, "models.qwen.dtype=float16")


def test_how_long_prompts_are_read_is_a_pipeline_s_setting(tmp_path):
    config = read(tmp_path, FILE, "models.flux.max_sequence_length=12")
    assert config.models["flux"].given["max_sequence_length"] == 12
    with pytest.raises(ConfigError, match="max_sequence_length goes with pipeline"):
        read(tmp_path, FILE, "models.ours.max_sequence_length=12")


@pytest.mark.parametrize("path", EVALUATIONS, ids=name_of)
def test_every_shipped_file_is_read(path):
    assert load_evaluation(path).model_dump(mode="json")["benchmark"] in ("mmau", "images", "text")


def test_the_benchmark_decides_and_mmau_is_what_it_was(tmp_path):
    assert isinstance(load_evaluation(CONFIGS / "omni" / "mmau.toml"), MmauConfig)
    with pytest.raises(ConfigError, match="'sound': expected one of images, text, mmau"):
        read(tmp_path, 'benchmark = "sound"')
    with pytest.raises(ConfigError, match="settings of evaluate: benchmark, data"):
        read(tmp_path, "dat = 1")


FAULTS = {
    "unknown key": ("steps = 28", "stpes = 28", "models.flux.stpes: unknown key; did you mean 'st"),
    "no model": ('[models.ours]\nrun = "runs/ours-*"', "[models.ours]", "it has none of them"),
    "two models": ('run = "runs/ours-*"', 'run = "a"\npipeline = "b"', "run and pipeline"),
    "adapters on a run": (
        'run = "runs/ours-*"',
        'run = "a"\nlora = "b"',
        "lora goes with pipeline",
    ),
    "weights": ("steps = 28", 'weights = "ema"', "goes with run or sweep"),
    "seeds": ("seeds = [0, 1]", "seeds = [1, 1]", "name one twice"),
    "name": ("[models.ours]", '[models."a/b"]', "the name 'a/b' names files"),
    "sets": (
        '[prompts]\nfile = "demo:image/prompts/held_out.jsonl"',
        '[[prompts]]\nfile = "a.txt"\n[[prompts]]\nfile = "b/a.txt"',
        "prompts: 'a' is there twice",
    ),
    "scorers": (
        "[models.ours]",
        '[[scorers]]\nkind = "clip"\nmodel = "other"\n[models.ours]',
        "scorers: 'clip' is there twice",
    ),
    "media": (
        'kind = "clip"\nmodel = "demo:image/reward_clip"',
        'kind = "reward_model"\nmodel = "m"',
        "scorers.0.kind = 'reward_model' judges completions, and this evaluation makes pictures",
    ),
    "unknown scorer": ('kind = "clip"', 'kind = "clop"', "scorers.0.kind: 'clop' is not known"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_place(tmp_path, name):
    before, after, said = FAULTS[name]
    assert FILE.count(before) == 1
    with pytest.raises(ConfigError) as error:
        read(tmp_path, FILE.replace(before, after))
    assert said in str(error.value)
