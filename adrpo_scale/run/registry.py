"""One dict from name to class per kind. Adding a component means adding a line here.

Each class carries its config class as `Config`.
"""

from __future__ import annotations

from adrpo_scale.algorithms.adrpo import Adrpo
from adrpo_scale.algorithms.base import Algorithm
from adrpo_scale.algorithms.dpo import Dpo
from adrpo_scale.algorithms.grpo import Grpo
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2
from adrpo_scale.algorithms.raft import Raft
from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.domains.base import Domain
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.domains.text import TextDomain
from adrpo_scale.engines.base import Engine
from adrpo_scale.engines.fsdp2 import Fsdp2Engine
from adrpo_scale.engines.zero3 import Zero3Engine
from adrpo_scale.rewards.audio import Choice
from adrpo_scale.rewards.base import Reward
from adrpo_scale.rewards.function import FunctionReward
from adrpo_scale.rewards.image import ClipReward, GlyphChecker
from adrpo_scale.rewards.reward_model import RewardModel
from adrpo_scale.rewards.text import DemoGold, ExactAnswer, Format, MathVerify

DOMAINS: dict[str, type[Domain]] = {"flow": FlowDomain, "text": TextDomain, "audio": AudioDomain}

ALGORITHMS: dict[str, type[Algorithm]] = {
    "adrpo": Adrpo,
    "grpo": Grpo,
    "orw_cfm_w2": OrwCfmW2,
    "raft": Raft,
    "dpo": Dpo,
}

ENGINES: dict[str, type[Engine]] = {"fsdp2": Fsdp2Engine, "zero3": Zero3Engine}

REWARDS: dict[str, type[Reward]] = {
    "clip": ClipReward,
    "glyph_checker": GlyphChecker,
    "function": FunctionReward,
    "reward_model": RewardModel,
    "exact_answer": ExactAnswer,
    "choice": Choice,
    "math_verify": MathVerify,
    "format": Format,
    "demo_gold": DemoGold,
}
