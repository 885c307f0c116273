"""The result of a preflight: checks, their findings, and the exit code that follows.

A fault stops the job, a warning does not. A fault of scope `node` disappears with other nodes in
place of the named ones; a fault of scope `run` needs a person.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from adrpo_scale.core import dist

FIT, SETUP_FAULT, NODE_FAULT = 0, 2, 4  # exit codes; errors.py has the same for exceptions


@dataclass(frozen=True)
class Finding:
    """A fault or a warning. nodes: the names of the nodes concerned."""

    severity: Literal["fault", "warning"]
    value: str
    expectation: str
    remedy: str
    nodes: tuple[str, ...] = ()
    scope: Literal["node", "run"] = "run"


@dataclass(frozen=True)
class Check:
    """One line of the table. name: for `--skip`. stated: the text of the line if nothing is
    found."""

    name: str
    stated: str
    findings: tuple[Finding, ...] = ()

    @property
    def state(self) -> Literal["fine", "warning", "fault"]:
        severities = {finding.severity for finding in self.findings}
        return "fault" if "fault" in severities else "warning" if severities else "fine"


@dataclass(frozen=True)
class Place:
    """The place of this process in the job. node: number of its node, from 0. names: names of all
    nodes, in order, from the job script; may be empty."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    node: int = 0
    name: str = "this machine"
    names: tuple[str, ...] = ()

    def name_of(self, rank: int) -> str | None:
        """The node of a rank; None where it is unknown."""
        number = rank // self.local_world
        return self.names[number] if number < len(self.names) else None


def find_place(env: Mapping[str, str] = os.environ) -> Place:
    """The place by the launcher's variables and ADRPO_NODES (the nodes' names, comma-separated)."""
    facts = dist.rank_facts(env)
    if facts.launcher == "srun":
        node = dist.stated_number(env, "SLURM_NODEID")
    else:
        node = dist.stated_number(env, "GROUP_RANK", facts.rank // facts.local_world)
    names = tuple(name.strip() for name in env.get("ADRPO_NODES", "").split(",") if name.strip())
    name = names[node] if node < len(names) else socket.gethostname()
    return Place(facts.rank, facts.world, facts.local_rank, facts.local_world, node, name, names)


def exit_code(checks: Iterable[Check]) -> int:
    """0: fit; 4: faults that other nodes fix; 2: faults that they do not fix."""
    scopes = {f.scope for check in checks for f in check.findings if f.severity == "fault"}
    return FIT if not scopes else SETUP_FAULT if "run" in scopes else NODE_FAULT


def bad_nodes(checks: Iterable[Check]) -> list[str]:
    """The nodes to exclude, each once, in the order of the checks."""
    faults = (f for check in checks for f in check.findings if f.severity == "fault")
    return list(dict.fromkeys(name for f in faults if f.scope == "node" for name in f.nodes))


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and 3 more`, each name once."""
    unique = list(dict.fromkeys(names))
    more = len(unique) - most
    return ", ".join(unique[:most]) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """`1 node`, `4 nodes`, `2 processes`."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
