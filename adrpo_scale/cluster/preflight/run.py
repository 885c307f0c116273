"""The command `preflight`: checks of a job before it loads a model.

Rank 0 alone reads the file; it orders the surveys and judges them. Cheap checks with precise
blame come first, because later ones rely on them: presence; folders, models, rewards, versions,
GPUs; and, only where these are fine, the network.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from adrpo_scale.core.signals import Signalled, stopping_at_once

if TYPE_CHECKING:
    from adrpo_scale.cluster.preflight.target import Target

OWN = ("models", "rewards", "space", "prompts", "cache", "memory")  # what they judge is the file's
SKIPPABLE = (
    "folder",
    *OWN,
    "scratch",
    "versions",
    "gpus",
    "limits",
    "clocks",
    "all-reduce",
)


@dataclass(frozen=True)
class PreflightOptions:
    """The command line. seconds: how long to wait for every process. skipped: names of checks.
    model: of an evaluation of MMAU."""

    config: Path
    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    as_json: bool = False
    seconds: float = 120.0
    skipped: frozenset[str] = frozenset()
    model: str | None = None


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
    with stopping_at_once():
        meeting = _meet(place, options)
        meeting.hello()

        def obey(order: Order) -> Any:
            return _obey(order, meeting.store, place)

        if place.rank > 0:
            return meeting.serve(obey)
        code = 1  # for the others, in case of a bug here
        try:
            code = _Leader(options, meeting, obey, begin).decide()
        except (Signalled, StopRequested):
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
        from adrpo_scale.cluster.preflight.cache import CacheNeed
        from adrpo_scale.cluster.preflight.find_target import find_target

        asked = self.options
        target = find_target(asked.config, asked.overrides, asked.run_dir, asked.model)
        self.title += f", {target.title}"
        absent = self.meeting.absent()
        self.checks.append(checks.check_present(self.place, absent, self.meeting.seconds, "answer"))
        if absent:
            return
        uses_cache = any(map(self._wants, ("prompts", "cache", "memory")))
        self.cache = target.cache() if uses_cache else CacheNeed(None)
        nodes = self._survey(nearest(target.folder), target)
        if nodes is None:
            return
        self._judge(nodes, target)
        if self._wants("all-reduce") and exit_code(self.checks) == 0:
            self._measure(nodes, gpu_checks.uses_cuda(nodes, target.device))

    def _wants(self, name: str) -> bool:
        return name not in self.options.skipped

    def _survey(self, folder: Path, target: Target) -> list[Node] | None:
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
                target.device,
                config,
                tuple(target.needs),
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

    def _judge(self, nodes: list[Node], target: Target) -> None:
        device, world = target.device, self.place.world
        is_cuda = gpu_checks.uses_cuda(nodes, device)
        ranks = (world, self.place.local_world)
        own = target.judges(nodes, self.cache, ranks, self.options.seconds)
        judges = {
            "folder": lambda: checks.check_folder(nodes, str(nearest(target.folder))),
            **{name: own[name] for name in OWN},
            "scratch": lambda: checks.check_scratch(nodes),
            "versions": lambda: checks.check_versions(nodes),
            "gpus": lambda: gpu_checks.check_gpus(nodes, device),
            "limits": lambda: checks.check_limits(nodes, world, is_cuda),
            "clocks": lambda: checks.check_clocks(nodes, self._clock_offsets(nodes)),
        }
        self.checks += [judge() for name, judge in judges.items() if self._wants(name)]

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
