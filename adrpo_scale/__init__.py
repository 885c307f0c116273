"""adrpo_scale: online reinforcement fine-tuning with ADRPO (arXiv 2510.18053), at cluster scale.

A script of yours needs the names below and no others. They are imported when they are asked for,
so `import adrpo_scale` alone loads neither torch nor anything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adrpo_scale.algorithms.advantages import advantages as advantages
    from adrpo_scale.algorithms.advantages import combined as combined
    from adrpo_scale.algorithms.base import Algorithm as Algorithm
    from adrpo_scale.algorithms.base import AlgorithmConfig as AlgorithmConfig
    from adrpo_scale.algorithms.base import included_sum as included_sum
    from adrpo_scale.algorithms.base import plain_credit as plain_credit
    from adrpo_scale.algorithms.group_relative import GroupRelative as GroupRelative
    from adrpo_scale.algorithms.group_relative import GroupRelativeConfig as GroupRelativeConfig
    from adrpo_scale.algorithms.terms import LikelihoodTerms as LikelihoodTerms
    from adrpo_scale.algorithms.terms import RegressionTerms as RegressionTerms
    from adrpo_scale.algorithms.terms import Terms as Terms
    from adrpo_scale.cluster.training import train as train
    from adrpo_scale.core.errors import AdrpoError as AdrpoError
    from adrpo_scale.core.errors import ConfigError as ConfigError
    from adrpo_scale.core.errors import LimitReached as LimitReached
    from adrpo_scale.core.errors import RewardError as RewardError
    from adrpo_scale.core.errors import StopRequested as StopRequested
    from adrpo_scale.core.settings import REQUIRED as REQUIRED
    from adrpo_scale.core.settings import Section as Section
    from adrpo_scale.core.settings import setting as setting
    from adrpo_scale.core.types import Completion as Completion
    from adrpo_scale.core.types import Credit as Credit
    from adrpo_scale.core.types import DrawKey as DrawKey
    from adrpo_scale.core.types import FlatRange as FlatRange
    from adrpo_scale.core.types import Prompt as Prompt
    from adrpo_scale.core.types import Rewards as Rewards
    from adrpo_scale.core.types import Rows as Rows
    from adrpo_scale.domains.base import Domain as Domain
    from adrpo_scale.domains.base import DomainConfig as DomainConfig
    from adrpo_scale.engines.base import Engine as Engine
    from adrpo_scale.engines.base import EngineConfig as EngineConfig
    from adrpo_scale.engines.base import OptimizerConfig as OptimizerConfig
    from adrpo_scale.engines.base import StepResult as StepResult
    from adrpo_scale.engines.spec import LoraConfig as LoraConfig
    from adrpo_scale.engines.spec import ModelSpec as ModelSpec
    from adrpo_scale.rewards.base import Reward as Reward
    from adrpo_scale.rewards.base import RewardConfig as RewardConfig
    from adrpo_scale.run.api import Run as Run
    from adrpo_scale.run.api import open_run as open_run
    from adrpo_scale.run.config import RunConfig as RunConfig
    from adrpo_scale.run.load import LoadedConfig as LoadedConfig
    from adrpo_scale.run.load import load_config as load_config

__version__ = "0.1.0"

_HOMES = {
    "algorithms.advantages": ("advantages", "combined"),
    "algorithms.base": ("Algorithm", "AlgorithmConfig", "included_sum", "plain_credit"),
    "algorithms.group_relative": ("GroupRelative", "GroupRelativeConfig"),
    "algorithms.terms": ("LikelihoodTerms", "RegressionTerms", "Terms"),
    "cluster.training": ("train",),
    "core.errors": ("AdrpoError", "ConfigError", "LimitReached", "RewardError", "StopRequested"),
    "core.settings": ("REQUIRED", "Section", "setting"),
    "core.types": ("Completion", "Credit", "DrawKey", "FlatRange", "Prompt", "Rewards", "Rows"),
    "domains.base": ("Domain", "DomainConfig"),
    "engines.base": ("Engine", "EngineConfig", "OptimizerConfig", "StepResult"),
    "engines.spec": ("LoraConfig", "ModelSpec"),
    "rewards.base": ("Reward", "RewardConfig"),
    "run.api": ("Run", "open_run"),
    "run.config": ("RunConfig",),
    "run.load": ("LoadedConfig", "load_config"),
}
__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"adrpo_scale.{home}"), name)
    raise AttributeError(f"module 'adrpo_scale' has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return __all__
