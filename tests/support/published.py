"""Models that a hub of the tests publishes, and a run's config that names them."""

from __future__ import annotations

from pathlib import Path

from adrpo_scale.hub.prefetch import prefetch
from adrpo_scale.run.load import load_config

CONFIG = """
iterations = 1
domain.name = "text"
domain.model = "own/policy"
domain.rollout_chunk = 8
domain.chat.max_prompt_tokens = 16
domain.rollout.max_new_tokens = 12
domain.evaluation.max_new_tokens = 12
algorithm = { name = "grpo", beta0 = 0.04, scale = "group_std" }
rewards = [{ kind = "reward_model", model = "own/reward", dtype = "float32" }]
prompts = { train = "hub:own/prompts", per_iteration = 4, group_size = 4 }
optimizer = { micro_batch = 4 }
evaluation = { every = 0, prompts = 4, samples_per_prompt = 2 }
"""
POLICY, REWARD, PROMPTS = (
    ("model", "own/policy"),
    ("model", "own/reward"),
    ("dataset", "own/prompts"),
)


def bring_of(path, settings, **options):
    config = load_config(path, settings).config
    prefetch(config.needs_from_hub(), config.checkpoint.quota_command, **options)


def bring(*settings, **options):
    bring_of(Path("run.toml"), settings, **options)


def config(*settings):
    return load_config(Path("run.toml"), settings).config
