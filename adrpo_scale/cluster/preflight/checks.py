"""What is wrong with the nodes, from what they say of themselves. Pure functions.

Each takes the nodes in their order and returns one line of the table.
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


# ---- who is there --------------------------------------------------------------------------------


def check_present(place: Place, absent: Sequence[int], seconds: float, did: str) -> Check:
    """absent: ranks. did: what they have not done, `answer`. Names their nodes where the job
    script states which there are."""
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
    """errors: what went wrong on a rank while it looked."""
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
        is_local = len(blind) == len(others) > 1  # nobody but rank 0's node has it
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
    """Only of nodes that see the folder: one finding a node is enough."""
    facts = node.facts.folder
    return None if facts is None or facts.unseen is not None else facts.unwritable


def check_models(nodes: Sequence[Node], number: int) -> Check:
    """Every node has the run's models, the same of them. number: how many there are."""
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
    """Room for `count` checkpoints of `size` bytes (None: not known yet) with `files` files in all;
    how: where the size is from."""
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
    """Node-local space for temporary files and compile caches."""
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
    """Code, config file, python and packages are the same everywhere (fault); so are the drivers
    (warning: nodes are updated one after the other)."""
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
    """The odd ones are those that differ from what most have."""
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
    """offsets: node number → seconds that its clock is ahead of rank 0's."""
    middle = median(offsets.values()) if offsets else 0.0

    def wrong(node: Node) -> str | None:
        ahead = offsets.get(node.number, middle) - middle
        if abs(ahead) <= CLOCK_SECONDS:
            return None
        return f"the clock is {abs(ahead):.0f} s {'ahead' if ahead > 0 else 'behind'}"

    remedy = "ask for its time service to be fixed; ages of locks and checkpoints are judged by it"
    findings = [
        found(bad, nodes, "warning", value, f"within {CLOCK_SECONDS:g} s of the others", remedy)
        for value, bad in alike(by_value(nodes, wrong))
    ]
    apart = max(offsets.values()) - min(offsets.values()) if offsets else 0.0
    return Check("clocks", f"{apart:.0f} s apart at most", tuple(findings))


def check_limits(nodes: Sequence[Node], world: int, is_cuda: bool) -> Check:
    """What NCCL and many connections need of the operating system; warnings alone."""
    files = 256 + 8 * world  # each process is connected with every other, in several groups

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
