"""Runs that are stopped, killed and started again, on real processes with real signals."""

from __future__ import annotations

import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adrpo_scale.checkpoint.locate import open_checkpoint
from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.checkpoint.shelf import committed
from adrpo_scale.core.errors import STOPPED
from tests.support import starts
from tests.support.faults import DieAt, SignalAt
from tests.support.tiny import FULL, records

EVERY = ["checkpoint.every_iterations=1", "iterations=5"]
FSDP2 = ["engine.name=fsdp2", "engine.shard=all"]
ITERATION = "adrpo_scale.training.trainer:Trainer._iterate"
ZERO3 = ["engine.name=zero3", "engine.shard=all"]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    """Uninterrupted runs to compare with, by settings and number of processes."""
    made = {}

    def run(world, *settings):
        if (world, settings) not in made:
            folder = tmp_path_factory.mktemp("quiet")
            start = starts.train(folder, world, [*EVERY, *settings])
            assert start.wait() == [0] * world, start.text()
            made[world, settings] = folder / "run"
        return made[world, settings]

    return run


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "world"),
    [
        # In one process: test_text_resume.py.
        ("lora", 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (("full", 2), ("sharded", 3), ("zero3", 2))
        ),
    ],
)
def test_a_run_in_pieces_is_the_run_in_one_to_the_bit(quiet, tmp_path, kind, world):
    all_of_it = {"lora": [], "full": FULL, "sharded": [*FULL, *FSDP2], "zero3": [*FULL, *ZERO3]}
    settings = [*all_of_it[kind], "ema_decay=0.9", "evaluation.every=2"]
    for iterations in (2, 5):
        start = starts.train(tmp_path, world, [*EVERY, *settings, f"iterations={iterations}"])
        assert start.wait() == [0] * world, start.text()
    run = tmp_path / "run"
    assert starts.differences(run, quiet(world, *settings)) == []
    assert [start["resumed_from"] for start in starts.records_of(run)] == [None, 2]


def test_a_killed_run_resumes_from_its_last_commit_and_its_curves_have_no_seam(quiet, tmp_path):
    """Killed when iteration 3 has been written down and iteration 2 is the last that was saved."""
    settings, run = ["evaluation.every=1"], tmp_path / "run"
    at = DieAt(ITERATION, 4, run / "checkpoints" / "step-000002")
    dies = [*EVERY, *settings, "checkpoint.every_iterations=2"]
    codes = starts.train(tmp_path, 2, dies, prepare=at).wait()
    assert -signal.SIGKILL in codes and 0 not in codes  # the second may miss the first before
    assert [line["iteration"] for line in records(run)] == [1, 2, 3]
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "rew')  # killed in the middle of a line
    assert starts.train(tmp_path, 2, [*EVERY, *settings]).wait() == [0, 0]
    assert starts.records_of(run)[-1]["resumed_from"] == 2
    assert starts.differences(run, quiet(2, *settings)) == []
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for tag, expected in (("train/reward", range(1, 6)), ("eval_train/reward", range(6))):
        assert [event.step for event in events.Scalars(tag)] == list(expected), tag


def test_the_number_of_processes_may_change_from_start_to_start(quiet, tmp_path):
    """4 → 2 → 3 → 1: the same prompts and ids, parameters within rounding."""
    for world, iterations in ((4, 2), (2, 3), (3, 4), (1, 5)):
        start = starts.train(tmp_path, world, [*EVERY, f"iterations={iterations}"])
        assert start.wait() == [0] * world, start.text()
    starts.assert_close_runs(tmp_path / "run", quiet(1))


def test_sharding_may_change_from_start_to_start(quiet, tmp_path):
    for world, shard, iterations in ((3, "all", 2), (4, "1", 3), (2, "all", 5)):
        settings = [*FULL, f"engine.shard={shard}", f"iterations={iterations}"]
        start = starts.train(tmp_path, world, [*EVERY, *settings])
        assert start.wait() == [0] * world, start.text()
    starts.assert_close_runs(tmp_path / "run", quiet(1, *FULL))


@pytest.mark.slow  # test_text_resume.py does the same in less time
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_engine_may_change_from_start_to_start(quiet, tmp_path, kind):
    """FSDP2 on 4 → ZeRO-3 on 2 → ZeRO-3 on 3 → FSDP2 on 2: as if nothing had changed."""
    trained = FULL if kind == "full" else []
    for world, engine, iterations in ((4, FSDP2, 2), (2, ZERO3, 3), (3, ZERO3, 4), (2, FSDP2, 5)):
        settings = [*EVERY, *trained, *engine, f"iterations={iterations}"]
        start = starts.train(tmp_path, world, settings)
        assert start.wait() == [0] * world, start.text()
    starts.assert_close_runs(tmp_path / "run", quiet(4, *trained, *FSDP2))


# ---- stopping ----------------------------------------------------------------------------------

PLACES = {
    "rollout": "adrpo_scale.domains.flow:FlowDomain.sample",
    "reward": "adrpo_scale.training.rollout:rewards_of",
    "update": "adrpo_scale.engines.fsdp2:Fsdp2Engine.backward",
    "save": "adrpo_scale.checkpoint.store:Store._commit",
}
TWICE = ["optimizer.updates=2"]  # so that an iteration has a middle


@pytest.mark.parametrize("place", PLACES)
def test_sigterm_stops_all_ranks_at_one_point_and_loses_nothing(quiet, tmp_path, place):
    """One rank alone gets it, in the middle of things."""
    at = SignalAt(PLACES[place], call=3, victim=0 if place == "save" else 1)
    start = starts.train(tmp_path, 2, [*EVERY, *TWICE], prepare=at)
    assert start.wait() == [STOPPED, STOPPED], start.text()
    run = tmp_path / "run"
    record = starts.records_of(run)[-1]
    assert record["outcome"] == "stopped by SIGTERM"
    saved = starts.committed_iterations(run)[-1]
    assert record["iteration"] == saved < 5
    assert [line["iteration"] for line in records(run)] == list(range(1, saved + 1))
    assert starts.train(tmp_path, 2, [*EVERY, *TWICE]).wait() == [0, 0]
    assert starts.differences(run, quiet(2, *TWICE)) == []


def test_a_stop_says_how_long_it_took_and_further_signals_change_nothing(quiet, tmp_path):
    both = (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1)
    start = starts.train(tmp_path, 1, EVERY, prepare=SignalAt(PLACES["rollout"], 3, both))
    assert start.wait() == [STOPPED]
    assert "SIGUSR1: stopped " in start.text() and "s after it" in start.text()
    record = starts.records_of(tmp_path / "run")[-1]
    assert record["outcome"] == "stopped by SIGUSR1" and 0 < record["seconds_from_signal"] < 10
    assert starts.train(tmp_path, 1, EVERY).wait() == [0]
    assert starts.differences(tmp_path / "run", quiet(1)) == []


def test_without_grace_for_the_updates_the_last_commit_stands(quiet, tmp_path):
    """The signal comes between two optimizer steps, and a step takes longer than the grace."""
    at = SignalAt(PLACES["update"], call=7, slow=0.3)
    settings = [*EVERY, *TWICE]
    start = starts.train(tmp_path, 1, [*settings, "checkpoint.grace_seconds=0.2"], prepare=at)
    assert start.wait() == [STOPPED], start.text()
    assert "the last commit stands" in start.text()
    assert "a stop may take" in start.text()  # stated before the signal came
    saved = starts.committed_iterations(tmp_path / "run")[-1]
    assert saved == 1
    assert starts.train(tmp_path, 1, settings).wait() == [0]
    assert starts.differences(tmp_path / "run", quiet(1, *TWICE)) == []


@pytest.mark.parametrize("call", [3, 5])
def test_a_stop_in_the_middle_of_an_evaluation_loses_nothing(quiet, tmp_path, call):
    """In one of an iteration in the middle, whose trajectory is due, and in the last one."""
    settings = ["evaluation.every=2", "iterations=4", "checkpoint.keep_trajectory=2"]
    place = "adrpo_scale.training.evaluator:Evaluator._divergences"
    start = starts.train(tmp_path, 1, [*EVERY, *settings], prepare=SignalAt(place, call))
    assert start.wait() == [STOPPED], start.text()
    start = starts.train(tmp_path, 1, [*EVERY, *settings])
    assert start.wait() == [0], start.text()
    assert starts.differences(tmp_path / "run", quiet(1, *settings)) == []
    assert sorted(committed(tmp_path / "run" / "trajectory")) == [2, 4]


def test_a_trajectory_may_come_by_the_same_iteration_twice(quiet, tmp_path):
    settings = ["checkpoint.keep_trajectory=3", "checkpoint.every_iterations=4"]
    at = DieAt(ITERATION, 4, tmp_path / "run" / "trajectory" / "step-000003")
    killed = [*EVERY, *settings, "checkpoint.on_failure=stop"]
    start = starts.train(tmp_path, 1, killed, prepare=at)
    assert start.wait() == [-signal.SIGKILL], start.text()
    again = starts.train(tmp_path, 1, [*EVERY, *settings, "checkpoint.on_failure=stop"])
    assert again.wait() == [0], again.text()
    folder = tmp_path / "run" / "trajectory" / "step-000003"
    assert list(Reader(folder).faults()) == [] and list(folder.parent.iterdir()) == [folder]


# ---- forks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("rebase", [False, True])
def test_a_fork_starts_from_trained_weights_with_fresh_counters(quiet, tmp_path, kind, rebase):
    settings = FULL if kind == "full" else []
    origin = quiet(1, *settings)
    flags = ["--init-from", f"{origin}@4", *(["--rebase-reference"] if rebase else [])]
    for iterations in (1, 3):  # the second start resumes from the fork's own checkpoint
        start = starts.train(tmp_path, 1, [*EVERY, *settings, f"iterations={iterations}"], *flags)
        assert start.wait() == [0], start.text()
    run = tmp_path / "run"
    assert [line["iteration"] for line in records(run)] == [1, 2, 3]
    document = starts.newest(run).manifest.document
    assert document["origin"]["iteration"] == 4
    assert document["counters"]["iteration"] == 3
    # At the first step the policy is the fork's reference exactly if it was rebased.
    first = records(run)[0]["divergence"]
    assert first == pytest.approx(0, abs=1e-10) if rebase else first > 1e-9
    straight = tmp_path / "straight"
    assert starts.train(straight, 1, [*EVERY, *settings, "iterations=3"], *flags).wait() == [0]
    assert starts.differences(run, straight / "run") == []


def test_adapters_of_a_rebased_run_are_no_start(tmp_path):
    settings = ["iterations=1", "checkpoint.every_iterations=1"]
    assert starts.train(tmp_path / "a", 1, settings).wait() == [0]
    rebased = ["--init-from", str(tmp_path / "a" / "run"), "--rebase-reference"]
    assert starts.train(tmp_path / "b", 1, settings, *rebased).wait() == [0]
    third = starts.train(tmp_path / "c", 1, settings, "--init-from", str(tmp_path / "b" / "run"))
    assert third.wait() == [2] and "do not hold all of its changes" in third.text()


def test_a_fork_outlives_its_origin(tmp_path):
    settings = ["iterations=2", "checkpoint.every_iterations=1"]
    assert starts.train(tmp_path / "a", 1, settings).wait() == [0]
    origin = tmp_path / "a" / "run"
    flags = ["--init-from", str(origin), "--rebase-reference"]
    assert starts.train(tmp_path / "b", 1, [*settings, "iterations=1"], *flags).wait() == [0]
    origin.rename(tmp_path / "gone")
    assert starts.train(tmp_path / "b", 1, settings, *flags).wait() == [0]
    assert starts.committed_iterations(tmp_path / "b" / "run")[-1] == 2


# ---- retention ---------------------------------------------------------------------------------


def test_retention_keeps_the_last_every_mth_and_the_best_over_restarts(tmp_path):
    settings = [
        *("checkpoint.every_iterations=1", "checkpoint.keep_last=1", "checkpoint.keep_every=4"),
        *("checkpoint.keep_best=1", "checkpoint.keep_trajectory=3", "evaluation.every=1"),
        "optimizer.learning_rate=0.02",
    ]
    run = tmp_path / "run"
    for iterations in (3, 7):
        assert starts.train(tmp_path, 1, [*settings, f"iterations={iterations}"]).wait() == [0]
    rows = records(run, "eval.jsonl")
    scores = {
        row["iteration"]: row["value"]
        for row in rows
        if (row["metric"], row["split"]) == ("reward", "held_out") and row["iteration"] > 0
    }
    best = max(scores, key=scores.__getitem__)
    assert starts.committed_iterations(run) == sorted({7, 4, best})
    trajectory = committed(run / "trajectory")
    assert sorted(trajectory) == [3, 6]
    reader = Reader(trajectory[6])
    assert reader.manifest.kind == "weights" and set(reader.manifest.sets) == {"policy"}
    assert open_checkpoint(f"{run}@3").folder == trajectory[3]
