"""Whole runs of the image demo on real processes: the same at any number of them."""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager

import pytest
import torch

from adrpo_scale.core import dist
from adrpo_scale.core.errors import AdrpoError, LimitReached, NonFiniteError
from adrpo_scale.core.run_rows import PROMPTS, prompt_rows
from adrpo_scale.core.seeding import Purpose, normal
from adrpo_scale.core.types import DrawKey
from adrpo_scale.training.metrics import setup_logging
from adrpo_scale.training.rollout import sample_block
from adrpo_scale.training.stopwatch import Stopwatch
from tests.support.closeness import assert_near, drifted, near
from tests.support.ranks import run_ranks
from tests.support.tiny import FULL, demo_config, demo_trainer, load_whole, records, whole_tensors

TERMS = 0.1  # the size of what a loss or divergence of this demo adds up
ALGORITHMS = ["adrpo", "grpo", "orw_cfm_w2", "raft", "dpo"]
TIMES = ("seconds", "samples_per_second")


# ---- in the ranks ----------------------------------------------------------------------------


def runs(rank, world, folder, variations):
    """Trains once per variation (a list of settings) in folder/0, folder/1, ..."""
    for place, settings in enumerate(variations):
        algorithm = settings[0] if settings[0] in ALGORITHMS else "adrpo"
        given = settings[settings[0] in ALGORITHMS :]
        demo_trainer(folder / str(place), demo_config(algorithm, given)).train()


def train(folder, world, variations):
    """metrics.jsonl of each variation; one may begin with an algorithm, otherwise it is ADRPO."""
    run_ranks(runs, world, folder, variations)
    return [records(folder / str(place)) for place in range(len(variations))]


def first_samples(trainer, group_size):
    """x1 of iteration 0 by sample id, the same on every rank."""
    with trainer.engine.sampling(trainer.policy):
        rows = sample_block(
            trainer.domain,
            trainer.policy,
            trainer.stream.at(0),
            group_size,
            DrawKey(trainer.seed, 0),
            trainer.rollouts.chunk,
        )
    return dist.gather_rows(rows.sample_ids_N), dist.gather_rows(rows.tensors["x1"])


def samples_then_trains(rank, world, folder, variations):
    found = []
    for place, settings in enumerate(variations):
        config = demo_config(overrides=settings)
        trainer = demo_trainer(folder / f"{world}-{place}", config)
        ids, x1 = first_samples(trainer, config.prompts.group_size)
        assert ids.tolist() == list(range(len(ids)))
        trainer.train()
        found.append(x1)
    return found if rank == 0 else None


# ---- the number of processes -----------------------------------------------------------------


def test_samples_loss_and_gradient_are_the_same_at_any_world_size_and_sharding(tmp_path):
    variations = [["engine.shard=1"], ["engine.shard=all"], [*FULL, "engine.shard=all"]]
    found = {w: run_ranks(samples_then_trains, w, tmp_path, variations)[0] for w in (1, 2, 4)}
    for place in range(len(variations)):
        alone = records(tmp_path / f"1-{place}")[0]
        assert alone["reward_std"] > 0 and alone["grad_norm"] > 0
        for world in (2, 4):
            assert_near(found[world][place], found[1][place])
            assert_same(records(tmp_path / f"{world}-{place}")[0], alone)


def assert_same(record, other, updates=0):
    """But for rounding, with which `updates` steps were made before."""
    for name in ("reward", "loss", "grad_norm", "divergence", "beta_mean", "samples"):
        assert record[name] == drifted(other[name], updates, TERMS), name


def test_samples_need_not_divide_by_the_number_of_ranks(tmp_path):
    """72 samples on 5 ranks; then 3 on 4, where one rank has no rows at all."""
    many = ["prompts.per_iteration=6", "prompts.group_size=12", "optimizer.micro_batch=8"]
    few = ["prompts.per_iteration=1", "prompts.group_size=3", "iterations=2"]
    alone = train(tmp_path / "alone", 1, [many, few])
    five = train(tmp_path / "five", 5, [many])
    four = train(tmp_path / "four", 4, [few, [*few, "engine.shard=all"]])
    assert five[0][0]["samples"] == 72
    assert_same(five[0][0], alone[0][0])
    for records_ in four:
        assert records_[0]["samples"] == 3 and len(records_) == 2
        assert_same(records_[0], alone[1][0])


def test_micro_batches_change_nothing(tmp_path):
    sizes = [[f"optimizer.micro_batch={size}"] for size in (1, 2, 4)]
    first, *others = train(tmp_path, 2, sizes)
    for other in others:
        assert_same(other[0], first[0])


def test_several_updates_minibatches_and_draws(tmp_path):
    settings = [
        ["optimizer.updates=2", "optimizer.minibatches=2"],
        ["optimizer.draws_per_sample=2"],
        ["optimizer.draws_per_sample=2", "optimizer.micro_batch=1"],
    ]
    (steps,), (two,), (one_by_one,) = train(tmp_path / "2", 2, settings)
    (alone, *_) = train(tmp_path / "1", 1, settings)
    assert steps["updates"] == 4 and two["updates"] == 1
    assert_same(steps, alone[0], updates=4)
    assert_same(two, one_by_one)


# ---- algorithms and settings of a run --------------------------------------------------------


def losses_by_hand(rank, world, folder, variations):
    """Loss of iteration 1 of each variation, in one process and one batch: the chosen rows' sum
    over the draws, divided by (chosen rows or pairs) x draws."""
    losses = []
    for place, (algorithm, *settings) in enumerate(variations):
        trainer = demo_trainer(folder / str(place), demo_config(algorithm, settings))
        rewarded = trainer.rollouts.of(0, Stopwatch(trainer.engine.device))
        credit = trainer.algorithm.credit(rewarded.rewards)
        chosen = trainer.algorithm.select(rewarded.rewards, credit)
        rows, credit = rewarded.rows.take(chosen), credit.take(chosen)
        noise_ids = torch.where(credit.pair_id >= 0, credit.pair_id, chosen)
        draws, wanted = trainer.optimizer.draws_per_sample, trainer.algorithm.terms
        total = 0.0
        for draw in range(draws):
            key = DrawKey(trainer.seed, 0, draw=draw)
            terms = trainer.domain.terms(
                trainer.policy, trainer.reference, rows, noise_ids, key, wanted
            )
            total += float(trainer.algorithm.loss(terms, credit))
        losses.append(total / (len(chosen) / trainer.algorithm.rows_per_unit * draws))
    return losses


def test_every_algorithm_trains_on_two_ranks_with_the_loss_written_by_hand(tmp_path):
    variations = [[name, "iterations=2", "engine.shard=all"] for name in ALGORITHMS]
    variations += [[name, "optimizer.draws_per_sample=2"] for name in ("adrpo", "raft")]
    (expected,) = run_ranks(losses_by_hand, 1, tmp_path / "hand", variations)
    found = train(tmp_path, 2, variations)
    for lines, loss in zip(found, expected, strict=True):
        assert lines[0]["loss"] == near(loss, TERMS)
        for line in lines:
            assert line["grad_norm"] > 0 and line["updates_skipped"] == 0
    assert [len(lines) for lines in found] == [2] * len(ALGORITHMS) + [1, 1]


def pool_is_the_references(rank, world, folder):
    """Offline DPO: weights are changed first, the pool does not care and is rolled out once."""
    config = demo_config(
        "dpo", ["algorithm.rollouts=reference", "algorithm.pool=1", "iterations=3"]
    )
    trainer = demo_trainer(folder, config)
    expected = first_samples(trainer, config.prompts.group_size)[1]  # adapters are still 0
    load_whole(trainer.engine, {n: t + 0.05 for n, t in whole_tensors(trainer.engine).items()})
    trainer.train()
    (pooled,) = trainer.rollouts.pool.values()
    assert torch.equal(dist.gather_rows(pooled.rows.tensors["x1"]), expected)


def test_offline_dpo_rolls_out_once_and_from_the_reference(tmp_path):
    run_ranks(pool_is_the_references, 2, tmp_path / "run")
    lines = records(tmp_path / "run")
    assert len(lines) == 3
    assert lines[0]["seconds_rollout"] > 0
    assert [line["seconds_rollout"] for line in lines[1:]] == [0, 0]
    assert len({line["reward"] for line in lines}) == 1


def trains_with_a_frozen_reference(rank, world, folder):
    trainer = demo_trainer(
        folder, demo_config(overrides=[*FULL, "engine.shard=all", "iterations=2"])
    )
    with trainer.reference() as model:
        assert model is not trainer.policy
        with trainer.engine.sampling(model):
            before = {n: p.clone() for n, p in model.named_parameters()}
    trainer.train()
    with trainer.reference() as model, trainer.engine.sampling(model):
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    after = whole_tensors(trainer.engine)
    assert any(not torch.equal(t, before[n]) for n, t in after.items())


def test_full_training_leaves_its_reference_alone(tmp_path):
    run_ranks(trains_with_a_frozen_reference, 2, tmp_path / "run")
    first, second = records(tmp_path / "run")
    assert first["divergence"] == pytest.approx(0, abs=1e-10) and second["divergence"] > 0


def evaluates_the_average(rank, world, folder, shard):
    settings = ["ema_decay=0.5", "evaluation.weights=ema", "evaluation.every=1", "iterations=2"]
    trainer = demo_trainer(folder, demo_config(overrides=[*settings, f"engine.shard={shard}"]))
    seen, applied = [], trainer.state.ema.applied

    @contextmanager
    def watched():
        before = whole_tensors(trainer.engine)
        with applied():
            seen.append((before, whole_tensors(trainer.engine)))
            yield
        after = whole_tensors(trainer.engine)
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())

    trainer.state.ema.applied = watched
    trainer.train()
    if rank == 0:
        # average = start, then half of the way to the weights after each of two steps
        expected = seen[0][0]
        for trained, averaged in seen[1:]:
            expected = {n: (t + trained[n]) / 2 for n, t in expected.items()}
            for name, tensor in averaged.items():
                assert_near(tensor, expected[name])
            assert any(not torch.equal(t, trained[n]) for n, t in averaged.items())
    return len(seen)


@pytest.mark.parametrize("shard", [1, "all"])
def test_evaluation_uses_the_average_and_training_gets_its_weights_back(tmp_path, shard):
    assert run_ranks(evaluates_the_average, 2, tmp_path / "run", shard) == [3, 3]
    rows = records(tmp_path / "run", "eval.jsonl")
    assert {row["iteration"] for row in rows} == {0, 1, 2}
    assert {row["split"] for row in rows} == {"train", "held_out"}
    assert {row["weights"] for row in rows} == {"ema"}
    prompts = {(r["iteration"], r["split"]): r for r in prompt_rows(tmp_path / "run" / PROMPTS)}
    assert len(prompts) == 6 and {r["weights"] for r in prompts.values()} == {"ema"}
    for row in rows:  # the same numbers, prompt by prompt
        columns = prompts[row["iteration"], row["split"]]["metrics"][row["metric"]]
        assert sum(columns["n"]) == row["n"] and len(set(columns["n"])) == 1
        mean = sum(columns["mean"]) / len(columns["mean"])
        assert mean == pytest.approx(row["value"], rel=1e-6, abs=1e-9)  # written with seven digits


def trains_on_rollout_noise(rank, world, folder):
    """Captures (x_t, timestep) that training shows the policy, and solves for x0."""
    trainer = demo_trainer(folder, demo_config(overrides=["domain.noise=rollout"]))
    rewarded = trainer.rollouts.of(0, Stopwatch(trainer.engine.device))
    ids = rewarded.rows.sample_ids_N.tolist()
    x0 = normal(DrawKey(trainer.seed, 0), ids, Purpose.ROLLOUT_NOISE, trainer.domain.latent_shape)
    assert torch.equal(rewarded.rows.tensors["x0"], x0)
    shown = []
    trainer.policy.register_forward_pre_hook(
        lambda module, args, kwargs: shown.append((kwargs["hidden_states"], kwargs["timestep"])),
        with_kwargs=True,
    )
    trainer.domain.terms(
        trainer.policy,
        trainer.reference,
        rewarded.rows,
        rewarded.rows.sample_ids_N,
        DrawKey(trainer.seed, 0),
        frozenset(),
    )
    (x_t, timestep), x1 = shown[0], rewarded.rows.tensors["x1"]
    t = (1 - timestep / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_t, (1 - t) * x0 + t * x1, rtol=1e-4, atol=1e-4)
    trainer.train()


def test_coupled_noise_is_the_noise_that_made_the_sample(tmp_path):
    run_ranks(trains_on_rollout_noise, 2, tmp_path / "run")
    assert records(tmp_path / "run")[0]["grad_norm"] > 0


def test_two_runs_of_one_config_are_equal_to_the_bit(tmp_path):
    settings = ["iterations=2", "engine.shard=all", "evaluation.every=1"]
    first, second = train(tmp_path, 2, [settings, settings])
    assert [timeless(line) for line in first] == [timeless(line) for line in second]
    assert records(tmp_path / "0", "eval.jsonl") == [
        row | {"run": "0"} for row in records(tmp_path / "1", "eval.jsonl")
    ]
    assert records(tmp_path / "0", PROMPTS) == records(tmp_path / "1", PROMPTS) != []


def timeless(line):
    return {name: value for name, value in line.items() if not name.endswith(TIMES)} | {
        name: None for name in line if name.startswith("seconds")
    }


# ---- what goes wrong -------------------------------------------------------------------------


def reward(artifacts):
    return [float(image.mean()) for image in artifacts]


def raises_on_one_prompt(artifacts, prompts):
    if any(prompt.id == int(os.environ["BAD_PROMPT"]) for prompt in prompts):
        raise ValueError("the reward cannot read this one")
    return reward(artifacts)


def nan_on_one_prompt(artifacts, prompts):
    bad = int(os.environ["BAD_PROMPT"])
    return [
        float("nan") if prompt.id == bad else value
        for prompt, value in zip(prompts, reward(artifacts), strict=True)
    ]


def always_raises(artifacts, prompts):
    raise OSError("the reward server is gone")


def trains_with_reward(rank, world, folder, algorithm, function, settings):
    """What a rank says of a run with one of the rewards above; BAD_PROMPT is the first prompt."""
    path = f"tests.training.test_training:{function}"
    reward_setting = f"rewards.0={{kind='function', path='{path}'}}"
    trainer = demo_trainer(folder, demo_config(algorithm, [reward_setting, *settings]))
    bad = trainer.stream.at(0)[0]
    os.environ["BAD_PROMPT"] = str(bad.id)
    setup_logging(folder)
    before = whole_tensors(trainer.engine)
    error = None
    try:
        trainer.train()
    except AdrpoError as raised:
        error = type(raised), str(raised)
    finally:
        logging.shutdown()
    after = whole_tensors(trainer.engine)
    moved = max(float((tensor - before[name]).abs().max()) for name, tensor in after.items())
    return {"prompt": (bad.id, bad.text), "error": error, "moved": moved}


@pytest.mark.parametrize("function", ["raises_on_one_prompt", "nan_on_one_prompt"])
def test_a_reward_that_fails_on_one_prompt_masks_its_samples_everywhere(tmp_path, function):
    """On three ranks, so that the prompt's group of six lies on two of them."""
    settings = ["prompts.group_size=6", "prompts.per_iteration=2", "iterations=2"]
    stated = run_ranks(trains_with_reward, 3, tmp_path, "adrpo", function, settings)
    assert stated[0]["error"] is None and stated[0]["moved"] > 0
    assert len({one["moved"] for one in stated}) == 1
    lines = records(tmp_path)
    assert lines[0]["masked"] == 6 and lines[0]["grad_norm"] > 0 and len(lines) == 2
    logs = [path.read_text() for path in sorted((tmp_path / "logs").iterdir())]
    number, text = stated[0]["prompt"]
    for log in logs[:2]:
        assert f"prompt {number} {text!r}" in log and "masked" in log
    assert "6 samples are masked" in logs[0]


def every_algorithm_without_a_reward(rank, world, folder):
    return [
        trains_with_reward(rank, world, folder / name, name, "always_raises", ["iterations=2"])
        for name in ALGORITHMS
    ]


def test_without_any_reward_no_rank_updates_and_none_waits(tmp_path):
    for stated in run_ranks(every_algorithm_without_a_reward, 2, tmp_path):
        assert [one["error"] for one in stated] == [None] * len(ALGORITHMS)
        assert [one["moved"] for one in stated] == [0] * len(ALGORITHMS)
    for name in ALGORITHMS:
        for line in records(tmp_path / name):
            assert line["masked"] == 16 and line["updates"] == 0
            assert line["loss"] is None and line["reward"] is None and line["grad_norm"] is None


def hits_limits(rank, world, folder):
    limits = {
        "divergence": ["limits.max_divergence=1e-12", "iterations=5"],
        "reward": ["limits.min_reward=1e6", "iterations=5"],
        "nan": ["optimizer.learning_rate=1e30", "limits.max_nonfinite_updates=2", "iterations=9"],
    }
    return {
        name: trains_with_reward(rank, world, folder / name, "adrpo", "nan_on_one_prompt", settings)
        for name, settings in limits.items()
    }


def test_limits_stop_every_rank_with_the_reason(tmp_path):
    stated = run_ranks(hits_limits, 2, tmp_path)
    for name in ("divergence", "reward", "nan"):
        assert stated[0][name]["error"] == stated[1][name]["error"]
    kind, message = stated[0]["divergence"]["error"]
    assert kind is LimitReached
    assert "iteration 2: divergence" in message and "limits.max_divergence = 1e-12" in message
    kind, message = stated[0]["reward"]["error"]
    assert kind is LimitReached
    assert "iteration 1: mean reward" in message and "limits.min_reward" in message
    kind, message = stated[0]["nan"]["error"]
    assert kind is NonFiniteError
    # The first update threw the weights away, the two iterations after it find nothing finite.
    assert message.startswith("iteration 2: 2 updates in a row had a gradient norm of nan")
    assert message.count(" '") == 4  # its four prompts by id and text
    assert [line["updates_skipped"] for line in records(tmp_path / "nan")] == [0, 1]
