"""The table of names holds against the files of real runs."""

from __future__ import annotations

import json

import pytest
from pyarrow import parquet

from adrpo_scale.core.histogram import from_json
from adrpo_scale.run.load import load_config
from adrpo_scale.run.starts import StartRecord, environment
from adrpo_scale.training import metric_names as names
from adrpo_scale.training.metric_names import (
    AUDIO,
    HISTOGRAMS,
    PICTURES,
    SEVERAL,
    TOKENS,
    Metric,
)
from tests.support.tiny import CONFIGS, SMALL, demo_trainer, records

SETTINGS = {"image_adrpo": SMALL, "audio_adrpo": [s for s in SMALL if ".steps" not in s]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of an image run with one reward trained on, and of a run on clips with two."""
    folders = {}
    for name, settings in SETTINGS.items():
        every = ["evaluation.every=1", "logging.completions_every=1", "logging.histograms_every=1"]
        overrides = [*settings, *every]
        config = load_config(CONFIGS / "demo" / f"{name}.toml", overrides).config
        folders[name] = tmp_path_factory.mktemp(name) / "run"
        demo_trainer(folders[name], config).train()
    return folders


def check(table: tuple[Metric, ...], written: list[set[str]], *when: str) -> None:
    """Every name that is written is in the table; every name of the table without a condition is
    written by all runs, and every name with one of the conditions `when` by at least one."""
    always = [metric for metric in table if not metric.when]
    for keys in written:
        assert [key for key in sorted(keys) if not any(m.matches(key) for m in table)] == []
        assert [m.name for m in always if not any(map(m.matches, keys))] == []
    sometimes = [metric for metric in table if metric.when in when]
    assert [m.name for m in sometimes if not any(map(m.matches, set().union(*written)))] == []


def keys_of(folder, file):
    return set().union(*records(folder, file))


def test_lines_of_iterations(runs):
    written = [keys_of(folder, "metrics.jsonl") for folder in runs.values()]
    check(names.ITERATION, written, SEVERAL, TOKENS, AUDIO, HISTOGRAMS)


def test_a_histogram_is_of_the_betas_of_the_line(runs):
    for folder in runs.values():
        for line in records(folder, "metrics.jsonl"):
            found = from_json(line["beta_histogram"])
            assert found.total == line["samples"] - line["masked"]
            low, high = found.first, found.first + len(found.counts) - 1
            assert low == line["beta_min"] // found.width
            assert high == line["beta_max"] // found.width


def test_rows_of_evaluations(runs):
    check(names.EVALUATION_ROW, [keys_of(folder, "eval.jsonl") for folder in runs.values()])
    check(names.PROMPT_ROW, [keys_of(folder, "eval_prompts.jsonl") for folder in runs.values()])
    written = [{row["metric"] for row in records(f, "eval.jsonl")} for f in runs.values()]
    check(names.EVALUATION, written, PICTURES, TOKENS, AUDIO, "a CLIP reward")


def test_columns_of_completions(runs):
    (file,) = (runs["audio_adrpo"] / "samples").glob("completions-*.parquet")
    check(names.COMPLETION, [set(parquet.read_table(file).column_names)])


def test_keys_of_a_start(tmp_path):
    record = StartRecord.begin(
        tmp_path, [environment()], launcher="single", resumed_from=None, changed_settings=[]
    )
    record.end("done", 0, 3, None)
    (file,) = (tmp_path / "lives").glob("*.json")
    check(names.START, [set(json.loads(file.read_text()))])


def test_a_name_that_no_row_explains_is_found():
    assert not any(metric.matches("surprise") for metric in names.ITERATION)
    assert any(metric.matches("reward_clip") for metric in names.ITERATION)
    assert any(metric.matches("seconds_rollout") for metric in names.ITERATION)
    assert not any(metric.matches("seconds_lunch") for metric in names.ITERATION)
