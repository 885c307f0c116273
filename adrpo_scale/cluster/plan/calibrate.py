"""Calibration of a plan by a trial's measurements.

The ratio of a trial's measurement to the plan for the trial's own machine, phase by phase, scales
the plan for the cluster. This corrects errors that both machines share (efficiency, overheads, the
allocator), while differences between them (number of GPUs, links, shards) are still predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.plan.base import ForeignTrialError, Hardware, PhaseMemory, PhaseTime, Plan
from adrpo_scale.cluster.plan.hardware import CPU, build_hardware, gpu_of_device
from adrpo_scale.core.json_files import parse_object, read_regular
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import parse_config

FORMAT = 1
PER_NODE = 8  # GPUs of a node, where an old trial does not state it


def read_trial(path: Path) -> dict[str, Any]:
    """Reads trial.json. Raises ForeignTrialError for any other file."""
    try:
        trial = parse_object(read_regular(path))
        if trial["format"] != FORMAT:
            raise ForeignTrialError(
                f"--trial {path} is of format {trial['format']}, expected {FORMAT}; make it again "
                "with `adrpo-scale train CONFIG --trial`"
            )
        for part in ("seconds", "peak_bytes", "settings", "world", "device"):
            trial[part]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ForeignTrialError(
            f"--trial {path}: not a trial's trial.json ({type(error).__name__}: {error}); make one "
            "with `adrpo-scale train CONFIG --trial`"
        ) from error
    return trial


def trial_run(trial: Mapping[str, Any], config: RunConfig) -> tuple[RunConfig, Hardware]:
    """The trial's config and hardware. Raises ForeignTrialError where it does not match
    `config`."""
    tried = parse_config(trial["settings"])
    for what in ("domain.name", "domain.model", "domain.train", "algorithm.name", "engine.dtype"):
        here, there = _value(config, what), _value(tried, what)
        if here != there:
            raise ForeignTrialError(
                f"the trial had {what} = {there!r}, this config has {here!r}: its measurements do "
                "not apply; make a trial of this config with `adrpo-scale train CONFIG --trial`"
            )
    on_gpu = trial["device"] == "cuda"
    gpu = gpu_of_device(str(trial["gpu"])).name if on_gpu else CPU
    world = int(trial["world"])
    per_node = int(trial.get("gpus_per_node") or min(world, PER_NODE))
    return tried, build_hardware(gpu, max(1, world // per_node), per_node, 100)


def _value(config: RunConfig, path: str) -> Any:
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


def calibrated(plan: Plan, trial: Mapping[str, Any], predicted: Plan) -> Plan:
    """`plan`, each phase scaled by the trial's measurement over `predicted`, the plan for the
    trial's own machine. Memory is scaled by trials on GPUs alone: a process's memory on a CPU also
    holds libraries and buffers that a GPU's memory does not."""
    times = [_time(time, trial["seconds"], predicted) for time in plan.times]
    on_gpu = trial["device"] == "cuda"
    peaks = [_memory(m, trial["peak_bytes"] if on_gpu else {}, predicted) for m in plan.memory]
    return replace(
        plan, times=times, memory=peaks, warnings=[*plan.warnings, *_doubts(plan, trial, predicted)]
    )


def _time(time: PhaseTime, seconds: Mapping[str, Any], predicted: Plan) -> PhaseTime:
    if time.phase == "save":
        return time  # a trial measures all of a save, which it waits for
    # A trial does not evaluate; an evaluation consists mainly of rollouts.
    phase = "rollout" if time.phase == "evaluation" else time.phase
    expected, found = predicted.seconds_of(phase), seconds.get(phase)
    if found is None or expected <= 0:
        return time
    ratio = float(found) / expected
    return replace(
        time,
        compute=time.compute * ratio,
        seconds=max(time.compute * ratio, time.communicate)
        if time.phase == "update"
        else time.compute * ratio + time.communicate,
        basis="measured",
    )


def _memory(peak: PhaseMemory, found: Mapping[str, Any], predicted: Plan) -> PhaseMemory:
    expected = predicted.memory_of(peak.phase)
    if found.get(peak.phase) is None or expected <= 0:
        return peak
    ratio = float(found[peak.phase]) / expected
    return replace(peak, bytes=int(peak.bytes * ratio), basis="measured")


def _doubts(plan: Plan, trial: Mapping[str, Any], predicted: Plan) -> list[str]:
    here, there = plan.hardware.gpu.name, predicted.hardware.gpu.name
    found = []
    if here != there:
        found.append(
            f"the trial ran on {there}, the plan is for {here}: times scaled by its measurements "
            "are rough; repeat the trial on one GPU of the cluster"
        )
    if trial["device"] != "cuda":
        found.append("the trial ran on CPUs, so memory is predicted, not measured")
    return found
