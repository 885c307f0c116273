"""Limits at which a run stops on purpose: the settings and their counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from adrpo_scale.core.bounds import COUNT, NUMBER, WAIT
from adrpo_scale.core.errors import LimitReached, NonFiniteError
from adrpo_scale.core.naming import named
from adrpo_scale.core.settings import Effect, Section, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.training.state import Counters

log = logging.getLogger(__name__)

# The same run would resume where it has collapsed, and refuses another learning rate.
FORK = (
    "start from an earlier checkpoint (--init-from RUN@ITERATION) with a lower "
    "optimizer.learning_rate"
)


class LimitsConfig(Section):
    """Conditions under which a run stops on purpose and states the reason."""

    EFFECT: ClassVar[Effect] = "none"

    max_divergence: float | None = setting(None, "stop above this mean divergence", gt=0, le=NUMBER)
    min_reward: float | None = setting(None, "stop below this mean reward", ge=-NUMBER, le=NUMBER)
    max_nonfinite_updates: int = setting(
        5, "stop after this many skipped updates in a row", ge=1, le=COUNT
    )
    max_unscored_iterations: int = setting(
        3,
        "stop after this many iterations in a row in which every sample's reward failed",
        ge=1,
        le=COUNT,
    )
    hang_seconds: float | None = setting(
        1200.0,
        "after this long without progress every rank writes its stacks and ends with the exit "
        "code that asks for a requeue; keep it below engine.timeout_seconds",
        ge=1,  # the watchdog looks a few times in it
        le=WAIT,
    )
    compare_replicas_every: int = setting(
        20,
        "iterations between two comparisons of trained weights that several ranks hold; 0: never",
        before=20,
        ge=0,
        le=COUNT,
    )
    max_stalled_lives: int = setting(
        3,
        "a Slurm job that was requeued is refused after this many starts in a row that ended by "
        "accident (killed, hung) and left no new checkpoint",
        ge=1,
        le=COUNT,
    )


class Limits:
    """The limits of [limits] over a run. Every rank checks the same numbers, so all ranks reach a
    limit or none does."""

    def __init__(self, config: LimitsConfig, rewards: Sequence[str]) -> None:
        """rewards: labels of the rewards trained on, for error messages."""
        self.config, self._rewards = config, rewards
        self._unscored = 0  # iterations in a row without any reward

    def check(self, record: Mapping[str, Any]) -> None:
        """Checks an iteration. record: its line of metrics.jsonl. Raises LimitReached."""
        config, where = self.config, f"iteration {record['iteration']}"
        reward, divergence = record["reward"], record["divergence"]
        self._unscored = self._unscored + 1 if reward is None else 0
        if self._unscored >= config.max_unscored_iterations:
            raise LimitReached(
                f"{where}: {self._unscored} iterations in a row had no sample with a finite reward "
                f"(limits.max_unscored_iterations = {config.max_unscored_iterations}); "
                f"{self._why(record)}"
            )
        if config.max_divergence is not None and (divergence or 0.0) > config.max_divergence:
            raise LimitReached(
                f"{where}: divergence {divergence:.4g} is above limits.max_divergence = "
                f"{config.max_divergence}; the policy has left the reference: {FORK}, or raise the "
                "limit"
            )
        if config.min_reward is not None and reward is not None and reward < config.min_reward:
            raise LimitReached(
                f"{where}: mean reward {reward:.4g} is below limits.min_reward = "
                f"{config.min_reward}; training has collapsed: {FORK}, or lower the limit"
            )

    def _why(self, record: Mapping[str, Any]) -> str:
        rewards = " and ".join(self._rewards)
        if record["masked"] > record.get("unscored", 0):
            return f"logs/ has the errors of {rewards}: fix them and start again"
        return f"{rewards} gave None for every sample: let one of them score these prompts"

    def count_skipped(self, counters: Counters, norm: float, prompts_P: Sequence[Prompt]) -> None:
        """Counts an update that the engine skipped, for its gradient norm as a rule. Raises
        NonFiniteError at max_nonfinite_updates in a row."""
        counters.nonfinite_in_a_row += 1
        in_a_row, most = counters.nonfinite_in_a_row, self.config.max_nonfinite_updates
        where = f"iteration {counters.iteration}"
        log.warning("%s: gradient norm is %s, update skipped", where, norm)
        if in_a_row >= most:
            names = "; ".join(map(named, prompts_P))
            raise NonFiniteError(
                f"{where}: {in_a_row} updates in a row had a gradient norm of {norm} "
                f"(limits.max_nonfinite_updates = {most}). It was of {names}. Lower "
                "optimizer.learning_rate, or look at the rewards of these prompts"
            )
