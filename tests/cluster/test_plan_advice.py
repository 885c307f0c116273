"""The advice of a plan that does not fit, and the calibration by a trial."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adrpo_scale.cluster.plan import memory
from adrpo_scale.cluster.plan.advice import cheapest_change, refusal
from adrpo_scale.cluster.plan.base import DoesNotFitError, ForeignTrialError, Hardware
from adrpo_scale.cluster.plan.calibrate import calibrated, read_trial
from adrpo_scale.cluster.plan.hardware import GPUS
from adrpo_scale.cluster.plan.planner import plan_of
from adrpo_scale.cluster.plan.view import show
from adrpo_scale.run.load import overridden
from tests.support.plans import hardware
from tests.support.tiny import FULL, demo_config


def gpu_with(room, world=4):
    """One whose usable memory is `room` bytes."""
    total = int(room * (1 + memory.FRAGMENTATION)) + memory.CONTEXT + memory.NCCL + 1
    return hardware(world, 2, memory=total)


def refused(config, room):
    plan = plan_of(config, gpu_with(room))
    assert not plan.fits
    change = cheapest_change(config, plan, lambda c, h: plan_of(c, h))
    return replace(plan, change=change)


def test_the_cheapest_change_is_the_micro_batch_where_that_is_enough():
    config = demo_config(overrides=["engine.shard=1", "prompts.group_size=64", *FULL])
    config = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"micro_batch": 64})}
    )
    plan = plan_of(config, hardware())
    room = plan.memory_of("update") - 1_000_000
    assert room > max(m.bytes for m in plan.memory if m.phase != "update")
    found = refused(config, room)
    assert found.change is not None
    (setting,) = found.change.settings
    assert setting == f"optimizer.micro_batch={found.largest_micro_batch}"
    assert found.change.peak <= found.usable
    with pytest.raises(DoesNotFitError, match=rf"--set {setting}"):
        raise refusal(found)


SMALLEST = ["domain.rollout_chunk=1", "domain.decode_chunk=1", "rewards.0.batch=1"]
SMALLEST += ["engine.activation_checkpointing=true", "evaluation.every=0", *FULL]


@pytest.mark.slow
def test_several_changes_where_one_is_not_enough_and_no_more_than_are_needed():
    def overrides(shard, checkpointing):
        return [
            *SMALLEST,
            f"engine.shard={shard}",
            f"engine.activation_checkpointing={checkpointing}",
        ]

    def peak(shard, checkpointing):
        return plan_of(demo_config(overrides=overrides(shard, checkpointing)), hardware()).peak

    both = peak("all", "true").bytes
    assert both < min(peak("all", "false").bytes, peak("1", "true").bytes)
    config, room = demo_config(overrides=overrides("1", "false")), both + 1000
    found = refused(config, room)
    assert found.change is not None and found.change.peak <= found.usable
    settings = found.change.settings
    assert len(settings) > 1
    for setting in settings:
        fewer = [other for other in settings if other != setting]
        assert not plan_of(overridden(config, fewer), gpu_with(room)).fits


@pytest.mark.slow  # half a minute: every change there is, planned
def test_no_change_is_made_up_where_nothing_is_enough():
    settings = ["engine.name=zero3", "engine.shard=all", "engine.offload_optimizer=true", *SMALLEST]
    settings += ["engine.offload_parameters=true", "optimizer.micro_batch=1"]
    found = refused(demo_config(overrides=settings), 1000)
    assert found.change is None
    assert "GPUs with more memory" in str(refusal(found))


# ---- calibration -----------------------------------------------------------------------------


def trial_of(config, plan, factor=2.0, device="cuda"):
    phases = ("load", "rollout", "reward", "update")
    return {
        "format": 1,
        "config": "demo",
        "digest": config.digest(),
        "world": plan.hardware.world,
        "device": device,
        "gpu": "NVIDIA RTX A6000" if device == "cuda" else None,
        "samples_per_iteration": plan.samples,
        "iterations": 2,
        "seconds": {p: factor * plan.seconds_of(p) for p in phases},
        "peak_bytes": {p: int(1.5 * plan.memory_of(p)) for p in phases},
        "settings": config.resolved(),
    }


def test_a_trial_scales_what_it_measured_and_says_so(capsys):
    config = demo_config()
    here = plan_of(config, hardware(1, 1))
    plan = plan_of(config, hardware())
    found = calibrated(plan, trial_of(config, here), here)
    for phase in ("load", "rollout", "reward", "update"):
        assert found.memory_of(phase) == pytest.approx(1.5 * plan.memory_of(phase), rel=1e-3)
    times = {t.phase: t for t in found.times}
    before = {t.phase: t for t in plan.times}
    assert times["reward"].seconds == pytest.approx(2 * before["reward"].seconds)
    assert times["update"].compute == pytest.approx(2 * before["update"].compute)
    # A share of a save follows from its size: a trial waits for all of one.
    assert {t.basis for t in found.times if t.phase != "save"} == {"measured"}
    show(found)
    assert "scaled by a trial" in capsys.readouterr().out


def test_a_trial_on_cpus_says_nothing_of_memory():
    config = demo_config()
    here = plan_of(config, Hardware(GPUS["cpu"], 1, 1, 1e9))
    plan = plan_of(config, hardware(), trial=trial_of(config, here, device="cpu"))
    assert {m.basis for m in plan.memory} == {"predicted"}
    assert any("its measurements are rough" in text for text in plan.warnings)


def test_a_trial_of_something_else_is_refused(tmp_path):
    config = demo_config()
    here = plan_of(config, hardware(1, 1))
    with pytest.raises(ForeignTrialError, match=r"algorithm\.name = 'adrpo'.*'grpo'"):
        plan_of(demo_config("grpo"), hardware(), trial=trial_of(config, here))
    path = tmp_path / "trial.json"
    for text in ("", "{}", '{"format": 2}', "[1]"):
        path.write_text(text)
        with pytest.raises(ForeignTrialError, match="--trial"):
            read_trial(path)
