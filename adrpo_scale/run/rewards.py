"""Builds the rewards of a run, what loads no model first: faults of rows are found in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from adrpo_scale.core.errors import RewardError, agreed
from adrpo_scale.core.keeping import kept
from adrpo_scale.core.types import Prompt
from adrpo_scale.engines.base import Engine
from adrpo_scale.rewards.apart import apart
from adrpo_scale.rewards.base import Reward, RewardConfig
from adrpo_scale.rewards.copies import own_prompts
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import REWARDS


def build_light_rewards(
    config: RunConfig, engine: Engine, prompts: Sequence[Prompt] = (), resumes: bool = False
) -> dict[int, Reward]:
    """The rewards that load no model, by their place in the config; raises as `build_rewards`."""
    return _built(config, engine, prompts, resumes, lambda reward: reward.is_light)


def build_rewards(
    config: RunConfig,
    engine: Engine,
    prompts: Sequence[Prompt] = (),
    resumes: bool = False,
    light: dict[int, Reward] | None = None,
) -> list[Reward]:
    """All rewards, loaded. prompts: those of the run. resumes: whether it resumes from a
    checkpoint. light: of `build_light_rewards`, where that was called before. Collective.

    Raises RewardError on every rank where prompts lack a value that rewards need; one error tells
    of all such rewards that load no model.
    """
    if light is None:
        light = build_light_rewards(config, engine, prompts, resumes)
    heavy = _built(config, engine, prompts, resumes, lambda reward: not reward.is_light)
    built = light | heavy
    rewards = [built[place] for place in range(len(config.rewards))]
    for reward in rewards:
        spec = reward.model_spec()
        if spec is not None:
            reward.use(engine.build_frozen(spec))
    return rewards


def _build(kind: type[Reward], section: RewardConfig, device: torch.device) -> Reward:
    if section.time_limit is not None:
        return apart(kind, section, device)
    return kind(section, device)  # type: ignore[call-arg, arg-type]


def is_ours(reward: Reward) -> bool:
    """Whether a reward is of this package."""
    return type(reward).__module__.startswith("adrpo_scale.")


def _built(
    config: RunConfig,
    engine: Engine,
    prompts: Sequence[Prompt],
    resumes: bool,
    wanted: Callable[[type[Reward]], bool],
) -> dict[int, Reward]:
    """Builds and checks the rewards that are wanted, by place."""
    built: dict[int, Reward] = {}
    for place, section in enumerate(config.rewards):
        reward = REWARDS[section.kind]
        if wanted(reward):
            with kept(f"reward {section.label}"):
                built[place] = _build(reward, section, engine.device)
    faults = []
    for one in built.values():
        one.resumes = resumes
        try:
            with kept(f"reward {one.label}"):
                one.check(prompts if is_ours(one) else own_prompts(prompts))
        except RewardError as error:
            faults.append(error)
    if faults:
        raise agreed(RewardError("\n".join(map(str, faults)))) from faults[0]
    return built
