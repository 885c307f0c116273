"""Components of a user's own, as a config names them: `"tests.support.own:Steady"`."""

from __future__ import annotations

from typing import ClassVar

import torch

from adrpo_scale.algorithms.adrpo import Adrpo, AdrpoConfig
from adrpo_scale.algorithms.base import Algorithm, AlgorithmConfig
from adrpo_scale.core.settings import Section, setting
from adrpo_scale.domains.flow import FlowConfig, FlowDomain
from adrpo_scale.engines.fsdp2 import Fsdp2Config, Fsdp2Engine
from adrpo_scale.rewards.base import Reward, RewardConfig


class SteadyConfig(AdrpoConfig):
    pull: float = setting(0.5, "how hard", ge=0)


class Steady(Adrpo):
    Config: ClassVar[type[SteadyConfig]] = SteadyConfig


class RedConfig(RewardConfig):
    channel: int = setting(0, "of the picture", ge=0, le=2)


class Red(Reward):
    Config: ClassVar[type[RedConfig]] = RedConfig

    def __init__(self, config, device):
        super().__init__(config)
        self._channel = config.channel

    def __call__(self, artifacts, prompts):
        return torch.tensor([float(a[..., self._channel].mean()) / 255 for a in artifacts])


class TilesConfig(FlowConfig):
    tiles: int = setting(2, "beside each other", ge=1)


class Tiles(FlowDomain):
    Config: ClassVar[type[FlowConfig]] = TilesConfig


class PlainConfig(Fsdp2Config):
    note: str = setting("", "written nowhere", effect="none")


class Plain(Fsdp2Engine):
    Config = PlainConfig


# ---- that break the contract -------------------------------------------------------------------

a_number = 3


def a_function(images, prompts):
    return [0.0 for _ in images]


class Other(Section):
    pass


class NoConfig(Reward):
    def __call__(self, artifacts, prompts):
        return torch.zeros(len(artifacts))


class OtherConfig(NoConfig):
    Config = Other


class NothingDefined(Algorithm):
    Config = AlgorithmConfig
