"""One table per kind of component, from the name in a config to the class.

A new component of the library needs a line here. A component of the user's is named by its import
path and needs none. Entries that are import paths belong to the demos, which the library does not
import.
"""

from __future__ import annotations

from adrpo_scale.algorithms.adrpo import Adrpo
from adrpo_scale.algorithms.awm import Awm
from adrpo_scale.algorithms.base import Algorithm, AlgorithmConfig
from adrpo_scale.algorithms.dpo import Dpo
from adrpo_scale.algorithms.grpo import Grpo
from adrpo_scale.algorithms.nft import Nft
from adrpo_scale.algorithms.orw_cfm_w2 import OrwCfmW2
from adrpo_scale.algorithms.raft import Raft
from adrpo_scale.core.components import Table
from adrpo_scale.domains.audio import AudioDomain
from adrpo_scale.domains.base import Domain, DomainConfig
from adrpo_scale.domains.flow import FlowDomain
from adrpo_scale.domains.text import TextDomain
from adrpo_scale.engines.base import Engine, EngineConfig
from adrpo_scale.engines.fsdp2 import Fsdp2Engine
from adrpo_scale.engines.zero3 import Zero3Engine
from adrpo_scale.rewards.audio import Choice
from adrpo_scale.rewards.base import Reward, RewardConfig
from adrpo_scale.rewards.function import FunctionReward
from adrpo_scale.rewards.http_scorer import HttpScorer
from adrpo_scale.rewards.image import ClipReward
from adrpo_scale.rewards.judge import Judge
from adrpo_scale.rewards.reward_model import RewardModel
from adrpo_scale.rewards.scorers.aesthetic import Aesthetic
from adrpo_scale.rewards.scorers.blip import BlipScore, ImageReward
from adrpo_scale.rewards.scorers.hpsv2 import Hpsv2
from adrpo_scale.rewards.scorers.pick_score import PickScore
from adrpo_scale.rewards.text import ExactAnswer, Format, MathVerify

DOMAINS = Table[Domain](
    what="domain",
    tag="name",
    base=Domain,
    section=DomainConfig,
    entries={"flow": FlowDomain, "text": TextDomain, "audio": AudioDomain},
)

ALGORITHMS = Table[Algorithm](
    what="algorithm",
    tag="name",
    base=Algorithm,
    section=AlgorithmConfig,
    entries={
        "adrpo": Adrpo,
        "grpo": Grpo,
        "orw_cfm_w2": OrwCfmW2,
        "raft": Raft,
        "dpo": Dpo,
        "nft": Nft,
        "awm": Awm,
    },
)

ENGINES = Table[Engine](
    what="engine",
    tag="name",
    base=Engine,
    section=EngineConfig,
    entries={"fsdp2": Fsdp2Engine, "zero3": Zero3Engine},
)

REWARDS = Table[Reward](
    what="reward",
    tag="kind",
    base=Reward,
    section=RewardConfig,
    entries={
        "clip": ClipReward,
        "aesthetic": Aesthetic,
        "blip_score": BlipScore,
        "image_reward": ImageReward,
        "pick_score": PickScore,
        "hpsv2": Hpsv2,
        "glyph_checker": "adrpo_scale.demo.image.rewards:GlyphChecker",
        "dice_checker": "adrpo_scale.demo.dice.rewards:DiceChecker",
        "function": FunctionReward,
        "reward_model": RewardModel,
        "exact_answer": ExactAnswer,
        "choice": Choice,
        "math_verify": MathVerify,
        "format": Format,
        "judge": Judge,
        "http": HttpScorer,
        "demo_gold": "adrpo_scale.demo.text.rewards:DemoGold",
    },
)
