"""A reward in a process of its own, which is ended where a call takes longer than its time limit.

Nothing else ends an endless comparison inside C code. While the process works within its limit, the
watchdog hears that; a process that died or was ended is replaced at the next call. The process
imports the reward and builds it: its model is there, and a second copy nowhere.
"""

from __future__ import annotations

import atexit
import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adrpo_scale.core import watchdog
from adrpo_scale.core.errors import AdrpoError, RewardError, given
from adrpo_scale.core.types import Prompt
from adrpo_scale.rewards.base import Embedding, Reward, RewardConfig
from adrpo_scale.rewards.calls import CallFailed, Scores, checked, said
from adrpo_scale.rewards.forks import Child, Connection, Server
from adrpo_scale.rewards.trial import tried, tried_in_vain

if TYPE_CHECKING:
    from adrpo_scale.data.readings import Readings

_STEP = 1.0  # seconds between two beats of the watchdog

_servers: list[Server] = []  # one, of this process


class Apart(Reward):
    """The reward of a config, in its process."""

    is_apart = True

    def __init__(self, reward: type[Reward], config: RewardConfig, device: torch.device) -> None:
        super().__init__(config)
        self.kind, self._config, self._device = reward, config, str(device)
        self._limit = given(config.time_limit)
        self._prompts: Sequence[Prompt] | None = None
        self._child: Child | None = None
        # Other people's modules may start threads, which a fork would not have.
        is_ours = reward.__module__.startswith("adrpo_scale.")
        _server().preload([reward.__module__, *reward.needs_modules] if is_ours else [])

    def check(self, prompts: Sequence[Prompt]) -> None:
        self._prompts = prompts
        child = self._child or self._begun(with_check=False)
        self._ask(child, "check", (self.resumes, prompts), None)

    def reads(self, prompts: Sequence[Prompt]) -> Readings | None:
        if self.kind.reads is Reward.reads:
            return None
        child = self._child or self._begun(with_check=True)
        found: Readings | None = self._ask(child, "reads", (prompts,), None)
        return found

    def __call__(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> Scores:
        answer = self._limited("score", (list(artifacts), list(prompts)))
        values, abstained, info, faults = answer
        numbers = torch.tensor(values, dtype=torch.float64)
        return Scores(numbers, torch.tensor(abstained).bool(), info, faults)

    def tried(self, artifacts: Sequence[Any], prompts: Sequence[Prompt]) -> str:
        """`trial.tried` in the process."""
        try:
            return str(self._limited("try", (list(artifacts), list(prompts))))
        except CallFailed as error:
            return tried_in_vain(self.label, str(error))

    def forget(self) -> None:
        if self._child is not None and self.kind.forget is not Reward.forget:
            self._ask(self._child, "forget", (), None)

    def _limited(self, name: str, arguments: Any) -> Any:
        """A call within the time limit. Raises CallFailed where it exceeds it."""
        child = self._child or self._begun(with_check=not self.kind.check_keeps_nothing)
        return self._ask(child, name, arguments, self._limit)

    def _begun(self, with_check: bool) -> Child:
        """A new process, with the reward built and checked. Raises as the reward does."""
        child = self._child = _server().start()
        try:
            place = {"path": sys.path, "folder": os.getcwd(), "environ": dict(os.environ)}
            made = (place, self.kind, self._config, self._device, self.record)
            self._ask(child, "build", made, None)
            if with_check and self._prompts is not None:
                self._ask(child, "check", (self.resumes, self._prompts), None)
        except CallFailed as error:
            raise RewardError(
                f"reward {self.label} cannot be built in a process of its own, which time_limit = "
                f"{self._limit:g} asks for: it {error}"
            ) from error
        return child

    def _ask(self, child: Child, name: str, arguments: Any, limit: float | None) -> Any:
        """The child's result. limit: seconds, after which it is ended; within them the watchdog is
        told of progress. Without a limit the watchdog's own holds."""
        begin = time.monotonic()
        try:
            child.to.send_bytes(pickle.dumps((name, arguments)))
            while not child.answers.poll(_STEP if limit is None else min(_STEP, limit)):
                if limit is None:
                    continue
                if time.monotonic() - begin > limit:
                    self._over(child)
                    raise CallFailed(f"took longer than time_limit = {limit:g} s")
                watchdog.beat()
            kind, result = pickle.loads(child.answers.recv_bytes())
        except (EOFError, OSError) as error:
            code = self._over(child)
            what = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise CallFailed(f"ended its process ({what})") from error
        if kind == "done":
            return result
        raise result

    def _over(self, child: Child) -> int:
        self._child = None
        return child.end()


class ApartEmbedding(Apart, Embedding):
    """The same of a reward that also embeds."""

    def embed(self, artifacts: Sequence[Any]) -> Tensor:
        return torch.from_numpy(self._limited("embed", (list(artifacts),)))


def apart(reward: type[Reward], config: RewardConfig, device: torch.device) -> Apart:
    """The reward of a config with a time limit."""
    kind = ApartEmbedding if issubclass(reward, Embedding) else Apart
    return kind(reward, config, device)


def _server() -> Server:
    """The server of this process, begun anew where it is gone."""
    if not (_servers and _servers[0].is_there()):
        _servers[:] = [Server((__name__, "obey"))]
        atexit.register(_servers[0].close)
    return _servers[0]


# ---- in the process ------------------------------------------------------------------------------


def obey(reads: int, writes: int) -> None:
    """Builds and calls a reward until the pipe is closed."""
    asked, answers = Connection(reads, writable=False), Connection(writes, readable=False)
    reward: Any = None
    told: tuple[str, Any]
    while True:
        try:
            name, arguments = pickle.loads(asked.recv_bytes())
        except EOFError:
            return
        try:
            if name == "build":
                reward, told = _build(*arguments), ("done", None)
            else:
                told = ("done", _do(reward, name, arguments))
        except AdrpoError as error:
            ours = type(error).__module__.startswith("adrpo_scale.")
            told = ("refused", error if ours else RewardError(str(error)))
        except (Exception, SystemExit) as error:
            told = ("raised", CallFailed(said(error)))
        answers.send_bytes(pickle.dumps(told))


def _build(
    place: Mapping[str, Any],
    kind: type[Reward],
    config: RewardConfig,
    device: str,
    record: Path | None,
) -> Reward:
    sys.path[:] = place["path"]
    os.chdir(place["folder"])
    os.environ.update(place["environ"])
    reward = kind(config, torch.device(device))  # type: ignore[call-arg, arg-type]
    if reward.asks_server:
        reward.record = record
    if reward.model_spec() is not None:
        raise RewardError(
            f"reward {reward.label}: time_limit = {config.time_limit:g} with a model that the "
            "engine shards over the ranks, which no process can have alone: leave time_limit out, "
            'or let every rank hold the model whole (placement = "replicated")'
        )
    return reward


def _do(reward: Any, name: str, arguments: Any) -> Any:
    if name == "check":
        reward.resumes, prompts = arguments
        return reward.check(prompts)
    if name == "try":
        return tried(reward, *arguments)
    if name == "reads":
        return reward.reads(*arguments)
    if name == "forget":
        return reward.forget()
    if name == "embed":
        return reward.embed(*arguments).numpy()
    scores = checked(reward, *arguments)
    values, abstained = scores.values_N.tolist(), scores.abstained_N.tolist()
    return values, abstained, dict(scores.info), scores.faults_N
