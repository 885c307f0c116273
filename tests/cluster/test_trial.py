"""`train CONFIG --trial`, as the real command: what it measures, leaves and never does."""

from __future__ import annotations

import importlib
import json
import mmap
import shlex
import signal
from dataclasses import dataclass

import pytest
import torch

from adrpo_scale.cluster.plan import trial
from adrpo_scale.cluster.plan.calibrate import trial_run
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.run import out_of_memory
from adrpo_scale.run.load import load_config, parse_config
from adrpo_scale.training.stopwatch import peak_bytes, reset_peak
from tests.support import starts
from tests.support.faults import SignalAt
from tests.support.tiny import CONFIGS, FULL, demo_config, records

# A schedule that knows the last iteration, evaluations and saves: a trial must not be changed by
# what it leaves out.
SETTINGS = [
    "iterations=3",
    "optimizer.schedule=cosine",
    "evaluation.every=1",
    "checkpoint.keep_best=1",
    "checkpoint.every_iterations=1",
    "limits.min_reward=1",
]
BACKWARD = "adrpo_scale.engines.fsdp2:Fsdp2Engine.backward"
ROLLOUT = "adrpo_scale.domains.flow:FlowDomain.sample"


@dataclass
class TooMuchAt:
    """Asks for more memory than there is, at call `call` of `module:Class.function`."""

    place: str
    call: int
    _calls: int = 0

    def __call__(self, rank):
        module, _, path = self.place.partition(":")
        owner, _, name = path.partition(".")
        found = getattr(importlib.import_module(module), owner)
        real = getattr(found, name)

        def watched(*args, **more):
            self._calls += 1
            if self._calls == self.call:
                torch.empty(2**52, dtype=torch.uint8)
            return real(*args, **more)

        setattr(found, name, watched)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(a trial's folder, what it printed)."""
    folder = tmp_path_factory.mktemp("trial")
    start = starts.train(folder, 1, SETTINGS, "--trial")
    assert start.wait() == [0], start.text()
    return folder / "run", start.text()


def test_it_says_what_it_measured(done):
    run, text = done
    found = json.loads((run / "trial.json").read_text())
    arguments = starts.train_arguments(run, SETTINGS)
    sets = [
        word for word, before in zip(arguments[1:], arguments, strict=False) if before == "--set"
    ]
    config = load_config(CONFIGS / "demo" / "image_adrpo.toml", sets).config
    assert (found["format"], found["config"], found["digest"]) == (
        1,
        "image_adrpo",
        config.digest(),
    )
    assert (found["world"], found["gpus_per_node"]) == (1, 1)
    assert (found["device"], found["gpu"]) == ("cpu", None)
    assert (found["samples_per_iteration"], found["iterations"]) == (4, 2)
    assert found["settings"] == config.resolved()
    last = records(run)[-1]
    for phase in ("rollout", "reward", "update"):
        assert found["seconds"][phase] == last[f"seconds_{phase}"] > 0
        assert 1e8 < found["peak_bytes"][phase] < 1e10
    assert found["seconds"]["load"] > 0 and found["seconds"]["save"] > 0
    assert found["peak_bytes"]["load"] > 1e8
    assert found["checkpoint_bytes"] > 100_000
    assert found.keys() == {
        *("format", "config", "digest", "world", "gpus_per_node", "device", "gpu"),
        *(
            "samples_per_iteration",
            "iterations",
            "seconds",
            "peak_bytes",
            "checkpoint_bytes",
            "settings",
        ),
    }
    for name in ("load", "rollout", "reward", "update", "save"):
        assert name in text


def test_what_it_computes_is_what_the_run_computes(done, tmp_path):
    run, _ = done
    start = starts.train(tmp_path, 1, SETTINGS)
    assert start.wait() == [0], start.text()
    whole = records(tmp_path / "run")
    assert [starts.timeless(line) for line in records(run)] == [
        starts.timeless(line) for line in whole[:2]
    ]
    assert whole[0]["learning_rate"] != whole[1]["learning_rate"]


def test_it_leaves_pictures_and_no_checkpoint(done):
    run, text = done
    pictures = sorted((run / "samples").iterdir())
    assert [path.name for path in pictures] == ["rollouts-000001.png", "rollouts-000002.png"]
    assert all(str(path) in text for path in pictures)
    assert not (run / "checkpoints").exists() and not (run / "eval.jsonl").exists()


def test_nothing_goes_on_from_a_trial_and_a_trial_from_nothing(done):
    run, _ = done
    start = starts.train(run.parent, 1, SETTINGS)
    assert start.wait() == [2] and "not the folder of a run" in start.text()
    again = starts.train(run.parent, 1, SETTINGS, "--trial")
    assert again.wait() == [2] and "a trial never resumes anything" in again.text()
    assert len(records(run)) == 2


def test_it_predicts_the_run_here_with_what_it_measured(done):
    run, text = done
    found = json.loads((run / "trial.json").read_text())
    config = parse_config(found["settings"])
    _, here = trial_run(found, config)
    plan = plan_of(config, here, found)
    assert plan.hardware.world == 1 and plan.digest == found["digest"]
    for phase in ("rollout", "reward", "update"):
        assert plan.seconds_of(phase) == pytest.approx(found["seconds"][phase])
    assert "machine: 1 node of 1 cpu = 1 processes" in text


def test_it_says_how_to_ask_about_a_cluster(done):
    run, text = done
    line = next(line for line in text.splitlines() if line.startswith("on a cluster: "))
    words = shlex.split(line.partition(": ")[2])
    assert words[:3] == ["adrpo-scale", "plan", str(CONFIGS / "demo" / "image_adrpo.toml")]
    assert "optimizer.schedule=cosine" in words
    assert words[-8:] == [
        *("--trial", str(run / "trial.json"), "--nodes", "10"),
        *("--gpus-per-node", "8", "--gpu", "a6000"),
    ]


def test_every_trial_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("ADRPO_RUNS", str(tmp_path / "runs"))
    loaded = load_config(CONFIGS / "demo" / "image_adrpo.toml")
    made = [trial._new_folder(loaded, None) for _ in range(3)]
    first = f"image_adrpo-{loaded.config.digest()}-trial"
    assert [path.name for path in made] == [first, f"{first}-2", f"{first}-3"]
    assert all(path.parent == tmp_path / "runs" and path.is_dir() for path in made)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be made"):
        trial._new_folder(loaded, tmp_path / "file" / "run")


def test_several_processes_make_one_trial(tmp_path):
    start = starts.train(tmp_path, 2, SETTINGS, "--trial")
    assert start.wait() == [0, 0], start.text()
    found = json.loads((tmp_path / "run" / "trial.json").read_text())
    assert found["world"] == 2 and found["iterations"] == 2
    assert start.text().count("on a cluster: ") == 1


@pytest.mark.parametrize(
    ("place", "call", "phase", "remedy"),
    [
        (ROLLOUT, 2, "rollout", "domain.rollout_chunk="),
        (BACKWARD, 3, "update", "optimizer.micro_batch=1, --set engine.activation_checkpointing="),
        ("adrpo_scale.domains.flow:FlowDomain.prepare", 1, "load", "engine.shard"),
    ],
)
def test_memory_that_runs_out_is_named_with_the_phase_and_what_to_try(
    tmp_path, place, call, phase, remedy
):
    start = starts.train(tmp_path, 1, SETTINGS, "--trial", prepare=TooMuchAt(place, call))
    assert start.wait() == [2]
    error = start.text().partition("error: ")[2]
    assert f"memory ran out in the {phase} of a trial with 4 samples" in error
    assert "can't allocate memory" in error and remedy in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("phase", "overrides", "remedy"),
    [
        ("rollout", ["domain.rollout_chunk=9"], "Try --set domain.rollout_chunk=4;"),
        ("rollout", ["domain.rollout_chunk=1", "engine.shard=all"], "Try more processes;"),
        ("rollout", ["domain.rollout_chunk=1"], "Try more processes with --set engine.shard=all;"),
        (
            "update",
            ["optimizer.micro_batch=1", "engine.activation_checkpointing=true", *FULL],
            "Try more processes with --set engine.shard=all, --set domain.train=lora;",
        ),
        (
            "update",
            ["optimizer.micro_batch=1"],
            "Try --set engine.activation_checkpointing=true;",
        ),
    ],
)
def test_what_to_try_is_not_what_is_set_already(phase, overrides, remedy):
    config = demo_config("adrpo", [*overrides])
    assert out_of_memory.remedy(config, phase).startswith(remedy)


def test_pairs_stay_together_in_what_to_try():
    config = demo_config("dpo", ["optimizer.micro_batch=2"])
    assert "micro_batch" not in out_of_memory.remedy(config, "update")
    config = demo_config("dpo", ["optimizer.micro_batch=6"])
    assert "optimizer.micro_batch=2," in out_of_memory.remedy(config, "update")


def test_a_signal_ends_it_for_good(tmp_path):
    """Not with the exit code that asks for another start."""
    at = SignalAt(ROLLOUT, 2, (signal.SIGTERM,))
    start = starts.train(tmp_path, 1, SETTINGS, "--trial", prepare=at)
    assert start.wait() == [2] and "SIGTERM stopped the trial" in start.text()


def test_the_peak_is_of_the_phase_alone():
    device = torch.device("cpu")
    reset_peak(device)
    before = peak_bytes(device)
    with mmap.mmap(-1, 200_000_000) as block:  # the allocator might keep what it has got
        block.write(bytes(len(block)))
        during = peak_bytes(device)
    assert during - before > 150e6
    reset_peak(device)
    assert during - peak_bytes(device) > 150e6
