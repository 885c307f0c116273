"""Runs whose reward is a server's: resumed without it, begun without it, and asked by preflight."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest

from adrpo_scale.cluster.preflight.rewards import rewards_check
from adrpo_scale.core.errors import RewardError
from adrpo_scale.run import train as running
from adrpo_scale.run.load import LoadedConfig
from tests.support.judge_server import QUICK, judge_server, scored
from tests.support.shared import CACHE
from tests.support.tiny import demo_config, records

SIZES = ["iterations=2", "prompts.per_iteration=2", "prompts.group_size=2"]
SIZES += ["checkpoint.every_iterations=1"]


def by_hash(body):
    """A number of each picture, by its bytes."""
    texts = [sample["image"] for sample in body["samples"]]
    return scored(*(hashlib.sha256(text.encode()).digest()[0] / 8 for text in texts))


def config(url):
    quick = {**QUICK, "attempts": 1}
    section = {"kind": "http", "url": url, "requests": quick, "batch": 3}
    loaded = demo_config("adrpo", [*SIZES, 'rewards=[{kind="http", url="http://host"}]'])
    return loaded.model_validate(loaded.model_dump() | {"rewards": [section]})


def train(run, url):
    running.train(LoadedConfig("judged", config(url), {}), running.TrainOptions(run))
    return [(row["reward"], row["masked"], row["info_http_failed"]) for row in records(run)]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("ADRPO_CACHE", str(CACHE))


def test_a_run_resumes_to_the_same_numbers_when_its_server_is_gone(tmp_path):
    whole, cut, asked = tmp_path / "whole", tmp_path / "cut", []

    with judge_server(lambda body: asked.append(len(body["samples"])) or by_hash(body)) as server:
        first = train(whole, server.url)
    assert sum(asked) == 3 + 2 * 4  # the trial's made-up samples, and each sample once
    files = json.loads((whole / "coverage.json").read_text())["files"]
    assert [(row["listed"], row["rows"], row["used"]) for row in files] == [(384,) * 3, (60,) * 3]
    assert [row[1:] for row in first] == [(0, 0), (0, 0)] and first[0][0] != first[1][0]
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "step-000002")
    (cut / "checkpoints" / "latest").unlink(missing_ok=True)
    assert train(cut, server.url) == first


def test_another_address_or_pace_is_the_same_run_and_another_scorer_is_not():
    here = config("http://here/v1")
    assert here.digest() == config("http://there/v1").digest()

    def changed(**settings):
        rewards = [here.rewards[0].model_dump() | settings]
        return here.model_validate(here.model_dump() | {"rewards": rewards}).digest()

    same = [{"requests": {"at_once": 9}}, {"batch": 1}, {"call_seconds": 5.0}, {"key": "MINE"}]
    assert {changed(**settings) for settings in same} == {here.digest()}
    assert len({here.digest(), changed(model="v2"), changed(row_keys=["answer"])}) == 3


def test_a_run_does_not_begin_without_its_server(tmp_path):
    with judge_server(by_hash) as server:
        assert rewards_check(config(server.url), tmp_path, 5.0).findings == ()
    with pytest.raises(RewardError, match=r"reward http got no answer .*; start its server"):
        train(tmp_path / "run", server.url)
    (fault,) = rewards_check(config(server.url), tmp_path, 5.0).findings
    assert fault.severity == "fault" and "reward http got no answer" in fault.value
