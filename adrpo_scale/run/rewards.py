"""Builds the rewards of a run, what loads no model first: faults of rows are found in seconds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from adrpo_scale.core import dist, watchdog
from adrpo_scale.core.errors import AdrpoError, PromptError, RewardError, agreed
from adrpo_scale.core.keeping import kept
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.engines.base import Engine
from adrpo_scale.rewards import trial
from adrpo_scale.rewards.apart import Apart, apart
from adrpo_scale.rewards.base import Reward, RewardConfig, longest_wait
from adrpo_scale.rewards.copies import own_prompts
from adrpo_scale.rewards.function import FunctionReward
from adrpo_scale.rewards.signature import rows_have
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import DOMAINS, REWARDS
from adrpo_scale.training.media import MEDIA

log = logging.getLogger(__name__)

VERDICTS = "verdicts"  # folder of a run: what servers have said
PATIENCE = 5  # times limits.hang_seconds, for a reward of one's own without a time limit
SIDE = 64  # of made-up pictures, where the config states no size


def light_rewards(
    config: RunConfig,
    device: torch.device,
    prompts: Sequence[Prompt] = (),
    resumes: bool = False,
    run: Path | None = None,
) -> dict[int, Reward]:
    """The rewards that load no model, built and checked, by their place in the config; raises as
    `build_rewards`."""
    return _built(config, device, prompts, resumes, lambda reward: reward.is_light, run)


def build_light_rewards(
    config: RunConfig,
    engine: Engine,
    prompts: Sequence[Prompt] = (),
    resumes: bool = False,
    run: Path | None = None,
) -> dict[int, Reward]:
    """`light_rewards`, tried on made-up samples. Collective."""
    built = light_rewards(config, engine.device, prompts, resumes, run)
    _try(config, built, prompts)
    return built


def _try(config: RunConfig, built: dict[int, Reward], prompts: Sequence[Prompt]) -> None:
    """`try_rewards` on rank 0, for which the others wait. Collective."""
    rewards = [*built.values()]
    with watchdog.patience(longest_wait(rewards)):
        dist.run_on_main(lambda: try_rewards(config, rewards, prompts))


def build_rewards(
    config: RunConfig,
    engine: Engine,
    prompts: Sequence[Prompt] = (),
    resumes: bool = False,
    light: dict[int, Reward] | None = None,
    run: Path | None = None,
) -> list[Reward]:
    """All rewards, loaded. prompts: those of the run. resumes: whether it resumes from a
    checkpoint. light: of `build_light_rewards`, where that was called before. run: the run's
    folder, in which what servers say is kept; None: it is not. Collective.

    Raises RewardError on every rank where prompts lack a value that rewards need; one error tells
    of all such rewards that load no model.
    """
    if light is None:
        light = build_light_rewards(config, engine, prompts, resumes, run)
    heavy = _built(config, engine.device, prompts, resumes, lambda reward: not reward.is_light, run)
    _try(config, heavy, prompts)
    built = light | heavy
    rewards = [built[place] for place in range(len(config.rewards))]
    for reward in rewards:
        spec = reward.model_spec()
        if spec is not None:
            reward.use(engine.build_frozen(spec))
    return rewards


def build_judge(
    section: RewardConfig, engine: Engine, prompts: Sequence[Prompt], record: Path | None = None
) -> Reward:
    """A reward that judges outside of a run, loaded. prompts: all that it will judge. record: see
    `Reward.record`. Collective. Raises RewardError as `build_rewards` does."""
    reward = checked_judge(section, engine.device, prompts, record)
    spec = reward.model_spec()
    if spec is not None:
        reward.use(engine.build_frozen(spec))
    return reward


def checked_judge(
    section: RewardConfig,
    device: torch.device,
    prompts: Sequence[Prompt],
    record: Path | None = None,
) -> Reward:
    """As `build_judge`, without a model that an engine shards. Not collective."""
    kind = REWARDS[section.kind]
    with kept(f"reward {section.label}"):
        reward = _build(kind, section, device, 0.0, record)
        reward.check(own_prompts(prompts) if is_own_code(kind) else prompts)
    return reward


def _build(
    kind: type[Reward],
    section: RewardConfig,
    device: torch.device,
    patience: float,
    record: Path | None,
) -> Reward:
    """record: see `Reward.record`."""
    if section.time_limit is not None:
        separate = apart(kind, section, device)
        separate.record = record
        return separate
    reward = kind(section, device)  # type: ignore[call-arg, arg-type]
    if kind.asks_server:
        reward.record = record
    if is_own_code(kind):
        reward.patience = patience
    return reward


def _patience(config: RunConfig) -> float:
    """Seconds that a call of other people's code may take beyond limits.hang_seconds: a slow judge
    is no hang. Less than the other ranks wait for it."""
    hang = config.limits.hang_seconds or 0.0
    return max(0.0, min(PATIENCE * hang, 0.9 * config.engine.timeout_seconds) - hang)


def is_own_code(kind: type[Reward]) -> bool:
    """Whether a kind of reward runs code that is not of this package."""
    return not kind.__module__.startswith("adrpo_scale.") or issubclass(kind, FunctionReward)


def _is_own(reward: Reward) -> bool:
    return is_own_code(_kind(reward))


def _kind(reward: Reward) -> type[Reward]:
    return reward.kind if isinstance(reward, Apart) else type(reward)


def _record(run: Path | None, place: int) -> Path | None:
    """The file of a reward and this rank; what an earlier start with more ranks has kept lies
    beside it."""
    return run and run / VERDICTS / f"reward-{place}-rank-{dist.rank():04d}.jsonl"


def _built(
    config: RunConfig,
    device: torch.device,
    prompts: Sequence[Prompt],
    resumes: bool,
    wanted: Callable[[type[Reward]], bool],
    run: Path | None,
) -> dict[int, Reward]:
    """Builds and checks the rewards that are wanted, by place."""
    built: dict[int, Reward] = {}
    check_code(config)
    for place, section in enumerate(config.rewards):
        reward = REWARDS[section.kind]
        if wanted(reward):
            with kept(f"reward {section.label}"):
                record = _record(run, place)
                built[place] = _build(reward, section, device, _patience(config), record)
    faults = []
    for one in built.values():
        one.resumes = resumes
        try:
            with kept(f"reward {one.label}"):
                one.check(own_prompts(prompts) if _is_own(one) else prompts)
        except RewardError as error:
            faults.append(error)
    if faults:
        raise agreed(RewardError("\n".join(map(str, faults)))) from faults[0]
    return built


def check_code(config: RunConfig) -> None:
    """Raises RewardError, which every rank does alike, where code that the rewards name cannot be
    imported, or not be called as rewards are. No model is loaded; the remedies name keys that all
    rows of the run's prompts have."""
    faults = _faults_of_code(config)
    if faults:
        with suppress(AdrpoError), rows_have(_row_keys(config)):
            faults = _faults_of_code(config)
        raise agreed(RewardError("\n".join(map(str, faults)))) from faults[0]


def _row_keys(config: RunConfig) -> set[str]:
    """Raises PromptError where the prompts are not here, or not to be read."""
    if config.prompts.needs_from_hub():
        raise PromptError("a file of the hub's, which may not be here")
    prompts, _ = build_prompts(config.prompts)
    return set.intersection(*(set(prompt.metadata) for prompt in prompts))


def _faults_of_code(config: RunConfig) -> list[RewardError]:
    faults = []
    for section in config.rewards:
        try:
            with kept(f"reward {section.label}"):
                REWARDS[section.kind].check_code(section)
        except RewardError as error:
            faults.append(error)
    return faults


def try_rewards(
    config: RunConfig, rewards: Sequence[Reward], prompts: Sequence[Prompt]
) -> list[str]:
    """Calls rewards that are not this package's, or ask a server, on made-up samples for the first
    prompts; warns of those that fail, and returns the warnings. Raises RewardError where an answer
    cannot be read, and where a run that begins finds no server.

    A reward whose model the engine shards is left out: the model is not there yet."""
    own = [
        reward
        for reward in rewards
        if (_is_own(reward) or _kind(reward).asks_server) and reward.model_spec() is None
    ]
    medium = DOMAINS[config.domain.name].medium
    if not own or not prompts or medium not in MEDIA:
        return []
    height, width = (getattr(config.domain, side, None) or SIDE for side in ("height", "width"))
    return try_on(own, medium, (height, width), prompts)


def try_on(
    rewards: Sequence[Reward], medium: str, size: tuple[int, int], prompts: Sequence[Prompt]
) -> list[str]:
    """Calls rewards on made-up samples of a medium for the first prompts, at least one; returns
    warnings as `try_rewards`. size: height and width of pictures."""
    chosen = [prompts[place % len(prompts)] for place in range(trial.SAMPLES)]
    warnings = []
    for reward in rewards:
        samples = trial.made_up(medium, chosen, size)
        with watchdog.phase(f"trial of reward {reward.label}"):
            if isinstance(reward, Apart):
                warnings.append(reward.tried(samples, chosen))
            else:
                warnings.append(trial.tried(reward, samples, chosen))
    warnings = [warning for warning in warnings if warning]
    for warning in warnings:
        log.warning("%s", warning)
    return warnings
