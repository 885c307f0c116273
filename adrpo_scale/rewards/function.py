"""A user's function as a reward: `kind = "function"`, `path = "my_module:my_function"`.

It is called as `function(artifacts, prompts)` with a list of uint8 images [H, W, 3] (or texts) and
a list of `Prompt`, and returns what `rewards.calls` reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from adrpo_scale.core.components import imported
from adrpo_scale.core.errors import RewardError
from adrpo_scale.core.settings import REQUIRED, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.base import Reward, RewardConfig
from adrpo_scale.rewards.signature import check_signature


class FunctionRewardConfig(RewardConfig):
    kind: str = setting("function", "a function by import path")
    path: str = setting(REQUIRED, "module:function, importable from where the run starts")


class FunctionReward(Reward):
    Config: ClassVar[type[FunctionRewardConfig]] = FunctionRewardConfig
    is_light = True

    @classmethod
    def check_code(cls, config: FunctionRewardConfig) -> None:
        check_signature(_found(config), config.label)

    def __init__(self, config: FunctionRewardConfig, device: torch.device) -> None:
        super().__init__(config)
        self._function = _found(config)

    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        return self._function(list(artifacts), list(prompts))


def _found(config: FunctionRewardConfig) -> Any:
    try:
        return imported(config.path)
    except ImportError as error:
        raise RewardError(f"reward {config.label}: path = {config.path!r} {error}") from error
