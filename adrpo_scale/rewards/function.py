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


class FunctionRewardConfig(RewardConfig):
    kind: str = setting("function", "a function by import path")
    path: str = setting(REQUIRED, "module:function, importable from where the run starts")


class FunctionReward(Reward):
    Config: ClassVar[type[FunctionRewardConfig]] = FunctionRewardConfig
    is_light = True

    def __init__(self, config: FunctionRewardConfig, device: torch.device) -> None:
        super().__init__(config)
        try:
            self._function = imported(config.path)
        except ImportError as error:
            raise RewardError(f"reward {self.label}: path = {config.path!r} {error}") from error

    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Any:
        return self._function(list(artifacts), list(prompts))
