"""Checks of the nodes by their surveys; pure functions.

Each takes the nodes in order and returns one line of the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from adrpo_scale.cluster.preflight.base import Check, Finding, Place, counted, listed
from adrpo_scale.cluster.preflight.judging import alike, by_value, found, majority
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.core.disk_space import Space, size_text
from adrpo_scale.run.starts import disagreements

CLOCK_SECONDS = 60.0
SCRATCH_BYTES = 2_000_000_000
SHARED_MEMORY_BYTES = 1_000_000_000


# ---- presence ------------------------------------------------------------------------------------


def check_present(place: Place, absent: Sequence[int], seconds: float, did: str) -> Check:
    """Every process has answered. absent: ranks that have not; did: the missing action, "answer".
    The finding names their nodes where the job script states the names."""
    nodes = len(place.names) or -(-place.world // place.local_world)
    stated = f"{counted(nodes, 'node')}, {counted(place.world, 'process')}"
    ranks_of: dict[str | None, list[int]] = {}
    for rank in absent:
        ranks_of.setdefault(place.name_of(rank), []).append(rank)
    findings = []
    for name, ranks in ranks_of.items():
        is_whole = name is not None and len(ranks) == place.local_world
        who = "" if is_whole else f"{listed([f'rank {rank}' for rank in ranks])} "
        exclude = "ADRPO_NODES=a,b,… would name the node" if name is None else f"--exclude={name}"
        findings.append(
            Finding(
                "fault",
                f"{who}did not {did} within {seconds:g} s",
                "every process of every node does",
                f"{exclude}; look at what it printed, and whether it reaches rank 0's node",
                () if name is None else (name,),
                "node",
            )
        )
    return Check("nodes", stated, tuple(findings))


def check_errors(place: Place, errors: Mapping[int, str]) -> Check:
    """No survey failed. errors: rank → its error."""
    findings = []
    for rank, error in errors.items():
        name = place.name_of(rank)
        findings.append(
            Finding(
                "fault",
                f"rank {rank}: {error}",
                "no error",
                "fix it, or exclude the node",
                () if name is None else (name,),
                "node",
            )
        )
    return Check("nodes", "", tuple(findings))


# ---- folders -------------------------------------------------------------------------------------


def check_folder(nodes: Sequence[Node], folder: str) -> Check:
    """Every node sees the file that rank 0 wrote in `folder`, and can write there."""
    others = nodes[1:]
    unseen = by_value(nodes, lambda n: n.facts.folder.unseen if n.facts.folder else None)
    findings = []
    blind = [node for group in unseen.values() for node in group]
    for why, bad in alike(unseen):
        is_local = len(blind) == len(others) > 1  # only rank 0's node sees it
        findings.append(
            Finding(
                "fault",
                f"{folder}: {why}",
                f"the folder that {nodes[0].name} sees",
                f"is it on a disk of {nodes[0].name} alone? Choose a --run-dir on the shared "
                "filesystem"
                if is_local
                else "mount the shared filesystem there, or exclude the node",
                tuple(node.name for node in bad),
                "run" if is_local else "node",
            )
        )
    for why, bad in alike(by_value(nodes, _why_unwritable)):
        value = f"{folder} cannot be written: {why}"
        remedy = "choose another --run-dir, or exclude the node where others can write"
        findings.append(found(bad, nodes, "fault", value, "a new file can be made there", remedy))
    whom = (
        "this node sees it and writes"
        if len(nodes) == 1
        else f"{len(nodes)} nodes see it and write"
    )
    return Check("folder", f"{whom} in {folder}", tuple(findings))


def _why_unwritable(node: Node) -> str | None:
    """The reason; None for nodes that do not see the folder: one finding for a node is enough."""
    facts = node.facts.folder
    return None if facts is None or facts.unseen is not None else facts.unwritable


def check_models(nodes: Sequence[Node], number: int, further: Sequence[Finding] = ()) -> Check:
    """Every node has the same copies of the run's models. number: how many models there are.
    further: findings about the models themselves."""
    missing = by_value(
        nodes, lambda n: "\n".join(n.facts.models.missing) if n.facts.models else None
    )
    missing.pop("", None)
    findings = []
    for lines, bad in alike(missing):
        remedy = (
            "on a node with internet: adrpo-scale prefetch CONFIG"
            if len(bad) == len(nodes)
            else "does the node see the same HF_HOME as the others? Mount it, or exclude the node"
        )
        expectation = "every model of the run is here"
        findings.append(found(bad, nodes, "fault", lines, expectation, remedy))
    broken = by_value(
        nodes, lambda n: "\n".join(n.facts.models.damaged) if n.facts.models else None
    )
    broken.pop("", None)
    for lines, bad in alike(broken):
        said = "files that their library can read"
        findings.append(found(bad, nodes, "fault", lines, said, "each line says what helps"))
    findings += further
    whole = [n for n in nodes if n.facts.models is not None and not n.facts.models.missing]
    prints = by_value(whole, lambda n: n.facts.models.fingerprint if n.facts.models else None)
    if len(prints) > 1:
        usual, odd = majority(prints)
        findings.append(
            found(
                odd,
                nodes,
                "fault",
                "other revisions or file sizes of the models than elsewhere",
                f"the same as on {listed([node.name for node in usual])}",
                "give all nodes the same cache (HF_HOME) and prefetch.lock, or exclude the node",
            )
        )
    where = "here" if len(nodes) == 1 else f"the same on {len(nodes)} nodes"
    return Check("models", f"{counted(number, 'model')}, {where}", tuple(findings))


def check_space(
    space: Space, folder: str, size: int | None, count: int, files: int, how: str
) -> Check:
    """Space for `count` checkpoints of `size` bytes (None: not known yet), with `files` files in
    total. how: the source of the size."""
    if size is None:
        free = f"{size_text(space.free_bytes)} free by the {space.source}"
        return Check("space", f"{free}; what a checkpoint takes is known once the model is loaded")
    needed = f"{size_text(count * size)} for {counted(count, 'checkpoint')} of {size_text(size)}"
    lacks = ""
    if space.free_bytes < count * size:
        lacks = f"{size_text(space.free_bytes)} free by the {space.source}"
    elif space.free_files is not None and space.free_files < files:
        lacks, needed = f"{space.free_files} more files allowed", f"{files} files"
    finding = Finding(
        "fault",
        f"{folder}: {lacks}",
        f"{needed} ({how})",
        "delete what is not needed, keep fewer (checkpoint.keep_last, keep_every, keep_best), or "
        "choose another --run-dir",
    )
    stated = f"{size_text(space.free_bytes)} free; {needed} ({how})"
    return Check("space", stated, (finding,) if lacks else ())


def check_scratch(nodes: Sequence[Node]) -> Check:
    """Node-local space for temporary files and caches of compiled kernels."""
    stated = [node.facts.scratch for node in nodes if node.facts.scratch]
    least = min((free for _, free in stated), default=0)

    def lack(node: Node) -> str | None:
        folder, free = node.facts.scratch or ("", SCRATCH_BYTES)
        return f"{size_text(free)} free in {folder}" if free < SCRATCH_BYTES else None

    findings = [
        found(bad, nodes, "warning", value, size_text(SCRATCH_BYTES), "clear it, or set TMPDIR")
        for value, bad in alike(by_value(nodes, lack))
    ]
    folders = listed([folder for folder, _ in stated])
    return Check("scratch", f"at least {size_text(least)} free in {folders}", tuple(findings))


# ---- versions, clocks, limits --------------------------------------------------------------------


def check_versions(nodes: Sequence[Node]) -> Check:
    """Code, config file, Python and packages are the same on all nodes (else a fault); so are the
    drivers (else a warning: nodes are updated one by one)."""
    findings = []
    code = [_without(node, "driver") for node in nodes]
    drivers = [_without(node, "commit", "versions", "cuda") for node in nodes]
    for environments, severity in ((code, "fault"), (drivers, "warning")):
        lines = disagreements(environments)
        if lines:
            findings.append(_version_finding(nodes, environments, lines, severity))
    first = nodes[0].facts.environment
    versions = first.get("versions", {})
    stated = f"python {versions.get('python')}, torch {versions.get('torch')}"
    commit = f", code {first['commit'][:12]}" if first.get("commit") else ""
    where = "" if len(nodes) == 1 else f" on {len(nodes)} nodes"
    return Check("versions", f"{stated}{commit}{where}", tuple(findings))


def _without(node: Node, *names: str) -> dict[str, Any]:
    kept = {k: v for k, v in node.facts.environment.items() if k not in names}
    return kept | {"host": node.name}


def _version_finding(
    nodes: Sequence[Node],
    environments: Sequence[Mapping[str, Any]],
    lines: list[str],
    severity: Any,
) -> Finding:
    """A finding about the nodes that differ from the most frequent environment."""
    groups: dict[str, list[Node]] = {}
    for node, facts in zip(nodes, environments, strict=True):
        key = json.dumps({k: v for k, v in facts.items() if k != "host"}, sort_keys=True)
        groups.setdefault(key, []).append(node)
    usual, odd = majority(groups)
    return found(
        odd,
        nodes,
        severity,
        "; ".join(lines),
        f"the same as on {listed([node.name for node in usual])}",
        "start every node from the same checkout and environment, or exclude the node",
    )


def check_clocks(nodes: Sequence[Node], offsets: Mapping[int, float]) -> Check:
    """Clocks agree. offsets: node number → seconds that its clock is ahead of rank 0's."""
    middle = median(offsets.values()) if offsets else 0.0

    def wrong(node: Node) -> str | None:
        ahead = offsets.get(node.number, middle) - middle
        if abs(ahead) <= CLOCK_SECONDS:
            return None
        return f"the clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"

    remedy = "have its time service fixed: ages of locks and checkpoints depend on it"
    findings = [
        found(bad, nodes, "warning", value, f"within {CLOCK_SECONDS:g} s of the others", remedy)
        for value, bad in alike(by_value(nodes, wrong))
    ]
    apart = max(offsets.values()) - min(offsets.values()) if offsets else 0.0
    return Check("clocks", f"{apart:.0f} s apart at most", tuple(findings))


def check_limits(nodes: Sequence[Node], world: int, is_cuda: bool) -> Check:
    """Limits of the operating system that NCCL and many connections need; warnings only."""
    files = 256 + 8 * world  # each process connects to all others, in several groups

    def open_files(node: Node) -> str | None:
        limit = -1 if node.facts.limits is None else node.facts.limits.open_files
        return f"ulimit -n is {limit}" if 0 <= limit < files else None

    def shared(node: Node) -> str | None:
        free = None if node.facts.limits is None else node.facts.limits.shared_memory
        if not is_cuda or len(node.ranks) == 1 or free is None or free >= SHARED_MEMORY_BYTES:
            return None
        return f"/dev/shm has {size_text(free)}"

    def locked(node: Node) -> str | None:
        limits = node.facts.limits
        is_limited = limits is not None and limits.infiniband and limits.locked_memory >= 0
        return f"ulimit -l is {limits.locked_memory} bytes" if limits and is_limited else None

    rules = (
        (open_files, f"at least {files}", f"ulimit -n {max(files, 4096)} in the job script"),
        (shared, size_text(SHARED_MEMORY_BYTES), "start the container with a larger --shm-size"),
        (locked, "unlimited, with InfiniBand", "ulimit -l unlimited in the job script"),
    )
    findings = [
        found(bad, nodes, "warning", value, expectation, remedy)
        for rule, expectation, remedy in rules
        for value, bad in alike(by_value(nodes, rule))
    ]
    return Check("limits", "open files, shared and locked memory are enough", tuple(findings))
