"""The reference of a run: where it stands, what it changes, and that reports stay to the base."""

from __future__ import annotations

import itertools

import pytest
import torch

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.types import DrawKey
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.training.reference import ReferenceConfig
from adrpo_scale.training.stopwatch import Stopwatch
from tests.support.closeness import drifted
from tests.support.ranks import run_ranks
from tests.support.starts import timeless
from tests.support.tiny import FULL, demo_config, demo_trainer, load_whole, records, whole_tensors
from tests.support.tiny_text import text_config

EMA = ["reference.kind=ema", "reference.decay=0.5"]
TERMS = 0.1  # the size of what a loss or divergence of this demo adds up


def runs(rank, world, folder, variations):
    for place, (algorithm, *settings) in enumerate(variations):
        config = demo_config(algorithm, ["iterations=3", *settings])
        demo_trainer(folder / str(place), config).train()


def train(folder, variations, world=1):
    """metrics.jsonl of image runs; each variation is an algorithm and settings."""
    run_ranks(runs, world, folder, variations)
    return [records(folder / str(place)) for place in range(len(variations))]


# ---- settings ------------------------------------------------------------------------------------


def test_the_decay_ramps_after_the_delay():
    config = ReferenceConfig(kind="ema", decay=0.9, ramp=0.25, delay=2)
    assert [config.decay_after(n) for n in range(1, 8)] == [0, 0, 0.25, 0.5, 0.75, 0.9, 0.9]
    assert [ReferenceConfig(kind="ema").decay_after(n) for n in (1, 99)] == [0.8, 0.8]


def test_a_snapshot_is_taken_every_few_iterations():
    config = ReferenceConfig(kind="snapshot", every=3)
    assert [config.decay_after(n) for n in range(1, 7)] == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["reference.decay=0.5"], 'decay = 0.5 with kind = "base"'),
        (["reference.kind=snapshot", "reference.ramp=0.1"], 'it belongs to kind = "ema"'),
        (["reference.kind=ema", "reference.every=5"], 'it belongs to kind = "snapshot"'),
        (["reference.kind=ema", "reference.decay=1.0"], "less than 1"),
        (["reference.base_coefficient=-1"], "greater than or equal to 0"),
    ],
)
def test_settings_that_do_not_fit_the_kind_are_refused(settings, named):
    with pytest.raises(ConfigError, match=named):
        demo_config(overrides=settings)


class Before(FlowDomain):
    """A domain of one's own, from before references moved."""

    def terms(self, policy, reference, rows, noise_ids_N, key, wanted):
        return super().terms(policy, reference, rows, noise_ids_N, key, wanted)


def test_a_domain_that_measures_no_base_trains_with_the_base_alone():
    own = f"domain.name={__name__}:Before"
    assert demo_config(overrides=[own]).reference.kind == "base"
    with pytest.raises(ConfigError, match="give its method `terms` the argument `base`"):
        demo_config(overrides=[own, *EMA])


# ---- what it changes -----------------------------------------------------------------------------


def test_a_moving_reference_begins_as_the_base_and_then_changes_the_loss(tmp_path):
    base, moving, full = train(tmp_path, [["adrpo"], ["adrpo", *EMA], ["adrpo", *EMA, *FULL]])
    for name in ("loss", "grad_norm", "divergence"):
        assert base[0][name] == moving[0][name]
        assert base[2][name] != moving[2][name]
    for line in (*moving[1:], *full[1:]):
        assert 0 < line["divergence_to_reference"] < line["divergence"]
    assert "divergence_to_reference" not in base[0]


def test_reports_stay_relative_to_the_base_in_every_kind(tmp_path):
    """RAFT's loss needs no reference: with any kind, its run is the same run."""
    evaluated = [
        "evaluation.every=1",
        "logging.divergence_every=1",
        "optimizer.draws_per_sample=2",
        "optimizer.updates=1",
    ]
    kinds = [[], EMA, ["reference.kind=snapshot", "reference.every=1"]]
    base, *moving = train(tmp_path, [["raft", *evaluated, *kind] for kind in kinds])
    tables = [records(tmp_path / str(place), "eval.jsonl") for place in range(len(kinds))]
    for lines, table in zip(moving, tables[1:], strict=True):
        for line, other in zip(lines, base, strict=True):
            assert line.pop("divergence_to_reference") is None
            same = line["loss"], line["grad_norm"], line["reward"]
            assert same == (other["loss"], other["grad_norm"], other["reward"])
            assert line["divergence"] > 0 or line["iteration"] == 1
        assert [row["value"] for row in table] == [row["value"] for row in tables[0]]


def test_a_snapshot_of_every_iteration_is_the_policy_itself(tmp_path):
    (lines,) = train(tmp_path, [["adrpo", "reference.kind=snapshot", "reference.every=1"]])
    assert [line["divergence_to_reference"] for line in lines] == [0, 0, 0]
    assert lines[1]["divergence"] > 0


@pytest.mark.parametrize("kind", [[], EMA], ids=["base", "ema"])
def test_the_second_penalty_adds_to_the_first(tmp_path, kind):
    """Fixed beta: a weight on the divergence from the base. In the first iterations of a moving
    reference that has not moved yet, both are of the same model."""
    stays = ["reference.kind=snapshot", "reference.every=1000"] if kind else []
    variations = [
        ["grpo", "algorithm.beta0=1.5", *stays],
        ["grpo", "algorithm.beta0=1.0", "reference.base_coefficient=0.5", *stays],
        ["raft", "reference.base_coefficient=0.5", *stays],
        ["raft", *stays],
    ]
    variations = [[*settings, "iterations=2"] for settings in variations]
    once, both, held, free = train(tmp_path, variations)
    for updates, (one, other) in enumerate(zip(once, both, strict=True)):
        for name in ("loss", "grad_norm", "divergence"):
            assert other[name] == drifted(one[name], updates, TERMS), name
    assert held[1]["loss"] != free[1]["loss"] and held[0]["loss"] == free[0]["loss"]


# ---- rollouts ----------------------------------------------------------------------------------


def source_of_rollouts(rank, world, folder):
    """What each source draws once policy, reference and base differ visibly."""
    drawn = {}
    for source in ("policy", "reference", "base"):
        settings = ["reference.kind=snapshot", "reference.every=1000"]
        config = demo_config("orw_cfm_w2", [*settings, f"algorithm.rollouts={source}"])
        trainer = demo_trainer(folder / source, config)
        engine, moving = trainer.engine, trainer.references.moving
        load_whole(engine, {n: t + 0.05 for n, t in whole_tensors(engine).items()})
        moving.begin()
        load_whole(engine, {n: t + 0.05 for n, t in whole_tensors(engine).items()})
        rows = trainer.rollouts.of(0, Stopwatch(engine.device)).rows
        with engine.sampling(trainer.policy):
            fresh = trainer.domain.sample(
                trainer.policy, trainer.stream.at(0)[:1], torch.tensor([0]), DrawKey(0, 0)
            )
        drawn[source] = rows.tensors["x1"][0]
        off = float((drawn[source] - fresh.tensors["x1"][0]).abs().max())
        assert (off < 1e-4) == (source == "policy"), (source, off)
    return drawn


def test_samples_are_drawn_from_the_model_that_is_named(tmp_path):
    (drawn,) = run_ranks(source_of_rollouts, 1, tmp_path)
    pairs = itertools.combinations(drawn.values(), 2)
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in pairs)


def test_a_ratio_needs_samples_of_the_policy(tmp_path):
    with pytest.raises(ConfigError, match="its ratio is to the policy that drew the samples"):
        text_config(tmp_path / "model", ["algorithm.rollouts=base"])


# ---- tokens --------------------------------------------------------------------------------------


def text_runs(rank, world, folder, variations):
    for place, settings in enumerate(variations):
        config = text_config(folder / "model", ["iterations=3", "optimizer.updates=2", *settings])
        demo_trainer(folder / str(place), config).train()


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_tokens_are_held_to_a_moving_reference(tmp_path, trained):
    adapters = ["domain.train=lora", "domain.lora={rank=8}"] if trained == "lora" else []
    variations = [[*adapters, *kind] for kind in ([], EMA, [*EMA, "reference.base_coefficient=9"])]
    run_ranks(text_runs, 1, tmp_path, variations)
    base, moving, both = (records(tmp_path / str(place)) for place in range(3))
    for name in ("loss", "grad_norm", "divergence"):
        assert moving[0][name] == pytest.approx(base[0][name], rel=0.5, abs=0.5)
        assert moving[2][name] != base[2][name]
    assert all(line["divergence_to_reference"] < line["divergence"] for line in moving[1:])
    assert both[2]["divergence"] < moving[2]["divergence"]
    assert torch.isfinite(torch.tensor([line["loss"] for line in both])).all()


def test_old_settings_leave_no_trace_in_the_log(tmp_path):
    (lines,) = train(tmp_path, [["grpo"]])
    assert not any("reference" in name for line in lines for name in timeless(line))


# ---- DiffusionNFT --------------------------------------------------------------------------------


def test_nft_trains_on_samples_of_its_reference(tmp_path):
    algorithm = "algorithm={name='nft',scale='group_std'}"
    lines, both = train(tmp_path, [["adrpo", algorithm, *EMA], ["adrpo", algorithm, *EMA, *FULL]])
    for line in (*lines[1:], *both[1:]):
        assert 0 < line["divergence_to_reference"] < line["divergence"]
    assert lines[0]["grad_norm"] > 0 and lines[0]["divergence"] == 0
