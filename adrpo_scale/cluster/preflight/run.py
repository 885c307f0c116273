"""The command `preflight`: checks of a job before it loads a model.

Rank 0 alone reads the config; it orders the surveys and judges them. Cheap checks with precise
blame come first, because later ones rely on them: presence; folders, models, rewards, versions,
GPUs; and, only where these are fine, the network.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from adrpo_scale.cluster.preflight import bandwidth, checks, gpu_checks, network_checks, view
from adrpo_scale.cluster.preflight.base import (
    Check,
    Place,
    bad_nodes,
    counted,
    exit_code,
    find_place,
)
from adrpo_scale.cluster.preflight.node import (
    Node,
    Request,
    to_data,
    to_nodes,
    to_request,
    to_survey,
)
from adrpo_scale.cluster.preflight.rendezvous import Meeting, Order, meet
from adrpo_scale.cluster.preflight.survey import nearest, survey, token_in
from adrpo_scale.core.errors import (
    STOPPED,
    AdrpoError,
    ConfigError,
    NodeError,
    StopRequested,
    agreed,
)
from adrpo_scale.core.errors import exit_code as code_of
from adrpo_scale.core.files import own

SKIPPABLE = (
    "folder",
    "models",
    "rewards",
    "space",
    "prompts",
    "cache",
    "memory",
    "scratch",
    "versions",
    "gpus",
    "limits",
    "clocks",
    "all-reduce",
)


@dataclass(frozen=True)
class PreflightOptions:
    """The command line. seconds: how long to wait for every process. skipped: names of checks."""

    config: Path
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    as_json: bool = False
    seconds: float = 120.0
    skipped: frozenset[str] = frozenset()


def preflight(options: PreflightOptions) -> int:
    """Runs the checks. Returns the exit code, equal in all processes: 0 fit, 4 exclude the named
    nodes, 2 a fault that other nodes do not fix.

    Raises NodeError in a process that cannot meet the others, AdrpoError on rank 0 where the config
    is wrong, StopRequested after a signal.
    """
    begin = time.monotonic()
    unknown = options.skipped - set(SKIPPABLE)
    if unknown:
        known = ", ".join(SKIPPABLE)
        raise ConfigError(f"--skip {', '.join(sorted(unknown))}: no such check; known: {known}")
    place = find_place()
    with _signals_raised():
        meeting = _meet(place, options)
        meeting.hello()

        def obey(order: Order) -> Any:
            return _obey(order, meeting.store, place)

        if place.rank > 0:
            return meeting.serve(obey)
        code = 1  # for the others, in case of a bug here
        try:
            code = _Leader(options, meeting, obey, begin).decide()
        except (_Signalled, StopRequested):
            code = STOPPED
            raise
        except AdrpoError as error:
            code = code_of(error)
            raise agreed(error) from None
        finally:
            meeting.end(code)
        return code


def _meet(place: Place, options: PreflightOptions) -> Meeting:
    try:
        return meet(place, options.seconds)
    except NodeError:
        if place.rank == 0:  # its port is taken, or its name leads to another machine
            write_bad_nodes([place.name])
        raise


class _Signalled(BaseException):
    """Raised by a signal at any moment: libraries that are being imported then wrap an Exception
    into one of their own."""


@contextmanager
def _signals_raised() -> Iterator[None]:
    """Turns Slurm's signals into StopRequested, so that no file stays in the run folder."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Signalled

    caught = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    except _Signalled:
        raise StopRequested(saveable=False) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _obey(order: Order, store: Any, place: Place) -> Any:
    """Carries out an order in any process; the answer is JSON-able."""
    match order["do"]:
        case "survey":
            return to_data(survey(to_request(order["request"]), place))
        case "clock":
            return time.time()
        case "measure":
            return bandwidth.measure(order, store, place)
    raise ValueError(f"order {order['do']!r} is not known: do all nodes run the same code?")


class _Leader:
    """Rank 0: asks, judges, shows. checks: the lines of the table so far."""

    def __init__(
        self, options: PreflightOptions, meeting: Meeting, obey: Any, begin: float
    ) -> None:
        self.options, self.meeting, self.obey, self.begin = options, meeting, obey, begin
        self.place = meeting.place
        self.checks: list[Check] = []
        self.title = f"preflight of {options.config}"
        self._rounds = 0  # of sums, each with a key of its own in the store

    def decide(self) -> int:
        """Runs the checks as far as they make sense, prints them, and returns the exit code."""
        self._check()
        code, seconds = exit_code(self.checks), time.monotonic() - self.begin
        if self.options.as_json:
            print(view.as_json(self.checks, self.title, seconds))
        else:
            view.show(self.checks, self.title, seconds)
        sys.stdout.flush()
        write_bad_nodes(bad_nodes(self.checks))
        return code

    def _check(self) -> None:
        # Imported here: meanwhile the other processes start.
        from adrpo_scale.cluster.preflight.cache import CacheNeed, cache_need
        from adrpo_scale.run.folder import default_folder
        from adrpo_scale.run.load import load_config

        loaded = load_config(self.options.config, self.options.overrides)
        config = loaded.config
        run = (self.options.run_dir or default_folder(loaded.name, config.digest())).absolute()
        self.title += f", run folder {run}"
        absent = self.meeting.absent()
        self.checks.append(checks.check_present(self.place, absent, self.meeting.seconds, "answer"))
        if absent:
            return
        needs = config.needs_from_hub()
        self.cache = CacheNeed(None)
        if any(map(self._wants, ("prompts", "cache", "memory"))):
            self.cache = cache_need(config)
        nodes = self._survey(nearest(run), config.engine.device, needs)
        if nodes is None:
            return
        self._judge(nodes, config, run, len(needs))
        if self._wants("all-reduce") and exit_code(self.checks) == 0:
            self._measure(nodes, gpu_checks.uses_cuda(nodes, config.engine.device))

    def _wants(self, name: str) -> bool:
        return name not in self.options.skipped

    def _survey(self, folder: Path, device: str, needs: Sequence[Any]) -> list[Node] | None:
        """The surveyed nodes; None where a process did not answer."""
        config = str(self.options.config.absolute())
        cache = self.cache.folder if self.cache.bytes is not None and self._wants("cache") else None
        with (
            token_in(folder) if self._wants("folder") else nullcontext() as token,
            token_in(nearest(cache)) if cache is not None else nullcontext() as other,
        ):
            request = Request(
                str(folder),
                token,
                device,
                config,
                tuple(needs),
                self.options.skipped,
                cache is not None,
                other,
            )
            answers = self.meeting.ask({"do": "survey", "request": to_data(request)}, self.obey)
        return self._sound(answers)

    def _sound(self, answers: Mapping[int, Mapping[str, Any]]) -> list[Node] | None:
        place = self.place
        silent = [rank for rank in range(place.world) if rank not in answers]
        errors = {rank: answer["error"] for rank, answer in answers.items() if "error" in answer}
        seconds = self.meeting.seconds
        if silent:
            did = "look at the folders and models (a filesystem hangs?)"
            self.checks[0] = checks.check_present(place, silent, seconds, did)
            return None
        if errors:
            self.checks[0] = checks.check_errors(place, errors)
            return None
        return to_nodes([to_survey(answer["answer"]) for answer in answers.values()])

    def _judge(self, nodes: list[Node], config: Any, run: Path, models: int) -> None:
        from adrpo_scale.cluster.preflight.cache import check_cache, check_prompts
        from adrpo_scale.cluster.preflight.estimate import space_check
        from adrpo_scale.cluster.preflight.host import check_host
        from adrpo_scale.cluster.preflight.rewards import rewards_check

        device = config.engine.device
        is_cuda = gpu_checks.uses_cuda(nodes, device)
        world = self.place.world
        judges = {
            "folder": lambda: checks.check_folder(nodes, str(nearest(run))),
            "models": lambda: self._models(nodes, config, run, models),
            "rewards": lambda: rewards_check(config, run, self.options.seconds),
            "space": lambda: space_check(config, run, world),
            "prompts": lambda: check_prompts(self.cache),
            "cache": lambda: check_cache(nodes, self.cache, self._beside(config, run)),
            "memory": lambda: check_host(nodes, config, self._ranks, self.cache.bytes),
            "scratch": lambda: checks.check_scratch(nodes),
            "versions": lambda: checks.check_versions(nodes),
            "gpus": lambda: gpu_checks.check_gpus(nodes, device),
            "limits": lambda: checks.check_limits(nodes, world, is_cuda),
            "clocks": lambda: checks.check_clocks(nodes, self._clock_offsets(nodes)),
        }
        self.checks += [judge() for name, judge in judges.items() if self._wants(name)]

    @property
    def _ranks(self) -> tuple[int, int]:
        return self.place.world, self.place.local_world

    def _models(self, nodes: list[Node], config: Any, run: Path, number: int) -> Check:
        """Also asks this node, as `train` does, once the models are there: a look-up of one that
        is not would download it."""
        from adrpo_scale.cluster.preflight.models import model_findings

        check = checks.check_models(nodes, number)
        if check.findings:
            return check
        return checks.check_models(nodes, number, model_findings(config, run))

    def _beside(self, config: Any, run: Path) -> int:
        from adrpo_scale.cluster.preflight.estimate import bytes_beside

        return bytes_beside(config, run, self.cache.folder)

    def _clock_offsets(self, nodes: Sequence[Node]) -> dict[int, float]:
        """Seconds that each node's clock is ahead of this one, up to the network's latency: all
        processes are waiting for the order."""
        clocks = self.meeting.ask({"do": "clock"}, self.obey)
        return {
            node.number: clocks[node.ranks[0]]["answer"] - clocks[node.ranks[0]]["at"]
            for node in nodes
            if "answer" in clocks.get(node.ranks[0], {})
        }

    def _measure(self, nodes: Sequence[Node], is_cuda: bool) -> None:
        """Sums within nodes, between nodes, over all; each stage only after sound ones."""
        everybody = [rank for node in nodes for rank in node.ranks]
        if len(everybody) == 1:
            return
        stages: list[tuple[Any, list[list[list[int]]]]] = [
            (network_checks.check_within, [bandwidth.within_nodes(nodes)]),
            (network_checks.check_pairs, bandwidth.between_nodes(nodes)),
            (network_checks.check_all, [[everybody]] if len(nodes) > 1 else []),
        ]
        for judge, rounds in stages:
            groups = [found for found in rounds if found]
            if not groups:
                continue
            sums = [one for groups_ in groups for one in self._sums(groups_, is_cuda)]
            self.checks.append(judge(nodes, sums))
            if self.checks[-1].state == "fault":
                return

    def _sums(self, groups: Sequence[Sequence[int]], is_cuda: bool) -> list[bandwidth.Sums]:
        """One round of sums, with every backend of the run."""
        sums = []
        for backend in ("gloo", "nccl") if is_cuda else ("gloo",):
            self._rounds += 1
            order = {
                "do": "measure",
                "key": f"sums/{self._rounds}",
                "groups": groups,
                "backend": backend,
                "seconds": bandwidth.SECONDS,
            }
            answers = self.meeting.ask(order, self.obey, bandwidth.SECONDS + 15)
            sums += bandwidth.combine(order, answers)
        return sums


def write_bad_nodes(names: Sequence[str], env: Mapping[str, str] = os.environ) -> None:
    """Writes one name a line into the file $ADRPO_BAD_NODES, for the job script to exclude."""
    path = env.get("ADRPO_BAD_NODES")
    if not path or not names:
        return
    try:
        with open(path, "w", opener=own) as file:
            file.write("".join(f"{name}\n" for name in names))
    except OSError as error:
        what = f"ADRPO_BAD_NODES = {path} cannot be written ({error})"
        print(f"preflight: {what}; exclude {counted(len(names), 'node')} by hand", file=sys.stderr)
