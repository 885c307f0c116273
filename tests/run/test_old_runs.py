"""Two promises to whoever has runs already: a config of before is the same run, and a run folder of
before resumes by the same command, to the same numbers.

`golden/digests.json` and `golden/runs` were written by the code of commit e257290. Each folder of
`runs` is a run of two iterations; `expected` beside it holds what that code made of iterations 3
and 4. They are never written again: what moves them breaks somebody's run.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from adrpo_scale.run.load import load_config
from tests.support.closeness import assert_adam_near
from tests.support.starts import Started, newest, timeless
from tests.support.tiny import CONFIGS, records

GOLDEN = Path(__file__).parents[1] / "golden"
DIGESTS: dict[str, str] = json.loads((GOLDEN / "digests.json").read_text())
COMMON = [
    "iterations=4",
    "prompts.per_iteration=2",
    "prompts.group_size=4",
    "optimizer.micro_batch=4",
    "evaluation.every=2",
    "evaluation.prompts=2",
    "evaluation.samples_per_prompt=2",
    "checkpoint.keep_last=1",
    "logging.pictures_every=0",
    "logging.completions_every=0",
]
RUNS = {
    "image": (
        "image_adrpo",
        [
            "domain.rollout.steps=4",
            "domain.evaluation.steps=4",
            "domain.lora.rank=2",
            "domain.lora.alpha=2",
            "ema_decay=0.9",
        ],
    ),
    "text_rm": (
        "text_rm_adrpo",
        [
            "domain.train=lora",
            "domain.lora.rank=2",
            "domain.lora.alpha=4",
            "optimizer.minibatches=2",
        ],
    ),
    "audio": ("audio_adrpo", ["domain.lora.rank=2"]),
}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_config_of_before_is_the_same_run(name: str) -> None:
    assert load_config(CONFIGS / name).config.digest() == DIGESTS[name]


def test_every_config_of_before_is_still_shipped() -> None:
    assert [name for name in DIGESTS if not (CONFIGS / name).is_file()] == []


@pytest.mark.parametrize("name", RUNS)
def test_a_run_folder_of_before_resumes_to_the_same_numbers(name: str, tmp_path: Path) -> None:
    run, expected = tmp_path / name, GOLDEN / "runs" / name / "expected"
    shutil.copytree(GOLDEN / "runs" / name, run, ignore=shutil.ignore_patterns("expected"))
    config, settings = RUNS[name]
    words = [word for text in [*COMMON, *settings] for word in ("--set", text)]
    arguments = ["train", str(CONFIGS / "demo" / f"{config}.toml"), "--run-dir", str(run), *words]
    start = Started(tmp_path, 1, arguments)
    assert start.wait() == [0], start.text()
    assert [line["iteration"] for line in records(run)] == [1, 2, 3, 4]
    assert_equal_rows([timeless(line) for line in records(run)], rows(expected / "metrics.jsonl"))
    assert_equal_rows(records(run, "eval.jsonl"), rows(expected / "eval.jsonl"))
    reader, wanted = newest(run), load_file(expected / "tensors.safetensors")
    moments = {n: reader.whole(n, "exp_avg_sq") for n in reader.names("exp_avg_sq")}
    (done,) = set(reader.manifest.document["optimizer_steps"].values())
    rate = json.loads((run / "config.json").read_text())["optimizer"]["learning_rate"]
    for name in {tensor.partition("/")[0] for tensor in wanted}:  # an average moves less
        after = {n.partition("/")[2]: t for n, t in wanted.items() if n.startswith(f"{name}/")}
        found = {parameter: reader.whole(parameter, name) for parameter in after}
        assert_adam_near(found, after, moments, rate, steps=done // 2, before=done // 2)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Equal but for the rounding of another processor; what was added to a line since is not looked
    at. Advantages and betas are differences of rewards, so their error is absolute: 1e-6 of the
    largest reward. A loss may be a sum that cancels, down from terms of size one."""
    assert len(found) == len(expected)
    for line, wanted in zip(found, expected, strict=True):
        assert wanted.keys() <= line.keys()
        of_rewards = 1e-6 * max(1.0, abs(wanted.get("reward", wanted.get("value", 1.0)) or 1.0))
        for key, value in wanted.items():
            if not isinstance(value, float):
                assert line[key] == value, key
            elif key.startswith(("reward", "advantage", "beta", "value")):
                assert line[key] == pytest.approx(value, rel=1e-6, abs=of_rewards), key
            else:
                assert line[key] == pytest.approx(value, rel=1e-4, abs=1e-7), key
