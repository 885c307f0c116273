"""Checks of the nodes' GPUs by their surveys; pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from adrpo_scale.cluster.preflight.base import Check, Finding, counted, listed
from adrpo_scale.cluster.preflight.judging import Severity, alike, by_value, found
from adrpo_scale.cluster.preflight.node import GpuFacts, Node
from adrpo_scale.core.disk_space import size_text

USED_BYTES, USED_SHARE = 2_000_000_000, 0.05  # tolerated: a context, and a desktop
MINIMUM_DRIVER = {"12": "525.60.13", "13": "580.65.06"}  # NVIDIA's CUDA compatibility guide


def uses_cuda(nodes: Sequence[Node], device: str) -> bool:
    """True where the run computes on GPUs; with "auto", where any node can."""
    able = any(node.facts.cuda is not None and node.facts.cuda.available for node in nodes)
    return device == "cuda" or (device == "auto" and able)


def check_gpus(nodes: Sequence[Node], device: str) -> Check:
    """Every process has a working, free GPU, all of one model. device: the setting
    engine.device."""
    if device == "cpu":
        return Check("gpus", 'none is used: engine.device = "cpu"')
    if not uses_cuda(nodes, device):
        return Check("gpus", "none: the run computes on the CPU", tuple(_unused(nodes)))
    findings = []
    for value, bad in alike(by_value(nodes, _why_no_cuda)):
        remedy = "exclude the node; nvidia-smi there says more"
        if len(bad) == len(nodes):
            remedy = "install the torch wheel for this driver, or compute on the CPU: engine.device"
        findings.append(found(bad, nodes, "fault", value, _driver_expected(bad[0]), remedy))
    remedy = "ask Slurm for as many GPUs as processes per node, and let each process see all"
    rules: tuple[tuple[Severity, Callable[[Node], str | None]], ...]
    rules = (("fault", _too_few), ("warning", _too_many))
    for severity, rule in rules:
        for value, bad in alike(by_value(nodes, rule)):
            findings.append(found(bad, nodes, severity, value, "a GPU for each process", remedy))
    findings += [finding for node in nodes for finding in _of_gpus(node, nodes)]
    findings += _other_models(nodes)
    return Check("gpus", _gpus_stated(nodes), tuple(findings))


def _unused(nodes: Sequence[Node]) -> Iterable[Finding]:
    """Findings about GPUs or drivers that no node can use: the run would silently use the CPU."""

    def unusable(node: Node) -> str | None:
        cuda = node.facts.cuda
        if cuda is None or not (cuda.driver or cuda.granted):
            return None
        there = f"driver {cuda.driver}" if cuda.driver else f"{cuda.granted} GPUs given by Slurm"
        return f"{there}, but {_why_no_cuda(node)}"

    for value, bad in alike(by_value(nodes, unusable)):
        is_driven = any(node.facts.cuda and node.facts.cuda.driver for node in bad)
        remedy = 'fix it, or set engine.device = "cpu" where the CPU is meant'
        severity: Severity = "fault" if is_driven else "warning"
        yield found(bad, nodes, severity, value, _driver_expected(bad[0]), remedy)


def _why_no_cuda(node: Node) -> str | None:
    cuda = node.facts.cuda
    if cuda is None or cuda.available:
        return None
    if cuda.wheel is None:
        return "torch was built without CUDA"
    return f"torch sees no GPU ({cuda.why or f'driver {cuda.driver}'})"


def _driver_expected(node: Node) -> str:
    cuda = node.facts.cuda
    if cuda is None or cuda.wheel is None:
        return "a torch wheel with CUDA"
    least = MINIMUM_DRIVER.get(cuda.wheel.split(".")[0])
    at_least = f", {least} or newer" if least else ""
    return f"a GPU and a driver fit for torch's CUDA {cuda.wheel}{at_least}"


def _too_few(node: Node) -> str | None:
    return _count(node) if _surplus(node) < 0 else None


def _too_many(node: Node) -> str | None:
    return _count(node) if _surplus(node) > 0 else None


def _surplus(node: Node) -> int:
    cuda = node.facts.cuda
    return 0 if cuda is None or not cuda.available else cuda.count - len(node.ranks)


def _count(node: Node) -> str:
    count = 0 if node.facts.cuda is None else node.facts.cuda.count
    return f"{counted(count, 'GPU')} for {counted(len(node.ranks), 'process')}"


def _of_gpus(node: Node, nodes: Sequence[Node]) -> Iterable[Finding]:
    for gpu in node.gpus:
        if gpu.error is not None:
            value, expectation = f"GPU {gpu.index}: {gpu.error}", "it multiplies two matrices"
            remedy = "exclude the node, and report it: nvidia-smi -q and dmesg (Xid) say more"
            yield found([node], nodes, "fault", value, expectation, remedy, hardware=True)
        elif gpu.used > max(USED_BYTES, USED_SHARE * gpu.total):
            by = f" by {listed(gpu.users)}" if gpu.users else ""
            value = f"GPU {gpu.index}: {size_text(gpu.used)} of {size_text(gpu.total)} in use{by}"
            remedy = "end those processes if they are yours, or exclude the node"
            free = "its memory is free"
            yield found([node], nodes, "fault", value, free, remedy, hardware=True)


def _other_models(nodes: Sequence[Node]) -> Iterable[Finding]:
    models = Counter(_model(gpu) for node in nodes for gpu in node.gpus if gpu.error is None)
    if len(models) < 2:
        return
    usual = models.most_common(1)[0][0]

    def other(node: Node) -> str | None:
        odd = {_model(gpu) for gpu in node.gpus if gpu.error is None} - {usual}
        return ", ".join(sorted(odd)) or None

    remedy = "the slowest sets the pace: choose nodes of one kind (--constraint, --partition)"
    for value, bad in alike(by_value(nodes, other)):
        yield found(bad, nodes, "warning", value, f"{usual} everywhere", remedy)


def _model(gpu: GpuFacts) -> str:
    return f"{gpu.name} with {round(gpu.total / 2**30)} GiB"


def _gpus_stated(nodes: Sequence[Node]) -> str:
    models = Counter(_model(gpu) for node in nodes for gpu in node.gpus if gpu.error is None)
    what = ", ".join(f"{number} × {model}" for model, number in models.items())
    cuda = nodes[0].facts.cuda
    driver = f", driver {cuda.driver}, CUDA {cuda.wheel}" if cuda is not None else ""
    return f"{what}{driver}"
