"""Builds the rewards of a run, what loads no model first: faults of rows are found in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adrpo_scale.core.errors import RewardError, agreed
from adrpo_scale.core.types import Prompt
from adrpo_scale.engines.base import Engine
from adrpo_scale.rewards.base import Reward
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
            built[place] = reward(section, engine.device)  # type: ignore[call-arg]
    faults = []
    for one in built.values():
        one.resumes = resumes
        try:
            one.check(prompts)
        except RewardError as error:
            faults.append(error)
    if faults:
        raise agreed(RewardError("\n".join(map(str, faults)))) from faults[0]
    return built
