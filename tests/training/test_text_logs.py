"""What a run of language models writes down, and what is warned about."""

from __future__ import annotations

import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adrpo_scale.core.errors import ConfigError, LimitReached
from adrpo_scale.run.build import build_trainer
from adrpo_scale.run.load import parse_config
from adrpo_scale.training.metrics import MetricsLog, text_table
from tests.support.tiny import records
from tests.support.tiny_text import text_config


def run(folder, *overrides):
    settings = ["iterations=2", "logging.completions_every=1", *overrides]
    trainer = build_trainer(text_config(folder / "model", settings), folder)
    trainer.train()
    return trainer


def test_entropy_divergence_and_lengths_are_in_every_line(tmp_path):
    run(tmp_path)
    for line in records(tmp_path):
        assert line["entropy"] > 0 and line["divergence"] >= 0
        assert 1 <= line["completion_tokens"] <= 12
        assert 0 <= line["truncated"] <= 1


def test_every_completion_is_recorded(tmp_path):
    run(tmp_path, "prompts.shuffle=false")
    table = parquet.read_table(tmp_path / "samples" / "completions-000001.parquet").to_pylist()
    line = records(tmp_path)[0]
    assert [row["sample"] for row in table] == list(range(16))
    assert [row["prompt_id"] for row in table] == [s // 4 for s in range(16)]
    assert table[0]["prompt"] == "w1 w2"
    assert {"completion", "tokens", "finished", "reward_kinds", "advantage", "beta"} <= set(
        table[0]
    )
    for name, of in (("reward_kinds", "reward"), ("divergence", "divergence")):
        assert sum(row[name] for row in table) / 16 == pytest.approx(line[of], abs=1e-6)
    for group in range(4):
        assert sum(row["advantage"] for row in table[4 * group : 4 * group + 4]) == pytest.approx(0)
    for row in table:
        clipped = min(max(row["advantage"], -0.04), 0.04)
        assert row["beta"] == pytest.approx(0.04 - clipped)
        assert row["entropy"] > 0
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    (shown, _) = events.Tensors("completions/text_summary")
    assert table[0]["completion"].split()[0] in shown.tensor_proto.string_val[0].decode()


def test_records_are_capped_by_their_size(tmp_path):
    log = MetricsLog(tmp_path, 3)
    rows = [{"sample": n, "completion": f"{n} " * 50} for n in range(100)]
    with log:
        for iteration in (1, 2, 3):
            log.completions(rows, iteration, megabytes=1e-6)
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["completions-000003.parquet"]


def test_a_table_survives_whatever_a_model_writes():
    lines = text_table([{"a": "x | y\nz <b>", "b": 0.123456}]).split("\n")
    assert len(lines) == 3
    assert lines[2] == r"| x \| y⏎ z &lt;b> | 0.1235 |"


def no_reward(completions, prompts):
    return [float("nan")] * len(completions)


def test_a_run_whose_rewards_all_fail_stops(tmp_path):
    overrides = [
        "iterations=9",
        'rewards=[{kind="function", name="broken", '
        'path="tests.training.test_text_logs:no_reward"}]',
    ]
    with pytest.raises(
        LimitReached, match=r"3 iterations in a row had no sample .*errors of broken"
    ):
        run(tmp_path, *overrides)
    assert [line["reward"] for line in records(tmp_path)] == [None] * 3


def test_warnings_about_estimators_and_cut_distributions(tmp_path):
    with pytest.warns(UserWarning, match="its expected on-policy gradient is zero"):
        text_config(tmp_path / "model", ["algorithm.kl_estimator=k1"])
    with pytest.warns(UserWarning, match="2 optimizer steps per rollout: ratios are of the whole"):
        text_config(tmp_path / "model", ["domain.rollout.top_p=0.9", "optimizer.updates=2"])
    with pytest.warns(UserWarning, match=r"whose beta is -0\.04, has no lower bound"):
        text_config(tmp_path / "model", ["algorithm.advantage_max=0.08"])


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (
            "{name='adrpo'}",
            r'beta0 and scale must be stated .*\(beta0 = 1\.0, scale = "none"\) is meant '
            r'.*the paper\'s beta0 = 0\.04, scale = "group_std" .*advantage_max = 0\.04',
        ),
        ("{name='grpo',beta0=0.04}", r'scale must be stated .*\(scale = "none"\)'),
        ("{name='dpo'}", r"beta must be stated .*\(beta = 2000\.0\).*state beta = 0\.1"),
    ],
)
def test_defaults_that_are_meant_for_flow_matching_are_refused_on_tokens(
    tmp_path, algorithm, message
):
    with pytest.raises(ConfigError, match=message):
        text_config(tmp_path / "model", [f"algorithm={algorithm}"])


def test_a_resolved_config_states_every_default(tmp_path):
    """A run that was begun with them resumes from its own config, and is the same run."""
    settings = "name='grpo',beta0=1.0,scale='none'"
    config = text_config(tmp_path / "model", [f"algorithm={{{settings}}}"])
    again = parse_config(config.resolved())
    assert again == config and again.digest() == config.digest()
