"""The hardware and the configs that plans are made for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from adrpo_scale.cluster.plan.base import Hardware
from adrpo_scale.cluster.plan.hardware import GPUS
from adrpo_scale.run.load import load_config


def hardware(world=4, per_node=2, **changes):
    return Hardware(replace(GPUS["a6000"], **changes), world // per_node, per_node, 12.5e9)


def config_of(path, *overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_config(Path(path), overrides).config
