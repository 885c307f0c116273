"""Which files of configs/paper stand for which number of the paper, and what each of them costs."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIGS = Path("configs/paper")
NEVER = "never run"
PLANS = ROOT / "benchmarks/results/paper-plans.json"


@dataclass(frozen=True)
class Recipe:
    """A number of the paper. shows: what it has. sweep: the file of its runs. evaluation: the file
    that judges them, "" for what the runs measure themselves. before, after: commands before the
    sweep and after it. nodes: of each run on the cluster, 0 for a demo, which runs on one machine.
    state: whether it was run here. notes: what else a reader must know."""

    title: str
    shows: str
    sweep: str
    evaluation: str = ""
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    nodes: int = 10
    state: str = NEVER
    notes: str = ""

    @property
    def commands(self) -> list[str]:
        """All commands, in order."""
        work = [f"adrpo-scale sweep {self.sweep} --run --at-once 2"]
        if self.nodes:
            array = f"--nodes={self.nodes} --array=0-{runs_of(self.sweep) - 1}%2"
            work = [
                f"adrpo-scale sweep {self.sweep} --dry-run --nodes {self.nodes}",
                f"sbatch {array} slurm/sweep.sbatch {self.sweep}",
                f"adrpo-scale status --sweep {self.sweep}",
            ]
        judge = [f"adrpo-scale report --sweep {self.sweep} --to reports/{Path(self.sweep).stem}"]
        if self.evaluation:
            name = Path(self.evaluation).stem
            tables = f"adrpo-scale report runs/evaluations/{name} --to reports/{name}"
            judge = [f"adrpo-scale evaluate {self.evaluation}", tables]
            if self.nodes:
                work = [f"adrpo-scale prefetch {self.evaluation}", *work]
                judge = [f"sbatch --nodes=1 slurm/evaluate.sbatch {self.evaluation}", tables]
        fetch = [f"adrpo-scale prefetch {self.sweep}"] if self.nodes else []
        return [*self.before, *fetch, *work, *(self.after or judge)]

    @property
    def files(self) -> list[str]:
        """The sweep, its configs, and the evaluation."""
        found = [self.sweep, *bases_of(self.sweep), self.evaluation]
        return [file for file in found if file]


PAPER: dict[str, Any] = tomllib.loads((ROOT / "docs/paper.toml").read_text())
RECIPES = tuple(Recipe(**stated) for stated in PAPER["recipes"])
SWEEPS = tuple(dict.fromkeys(Path(one.sweep) for one in RECIPES if one.nodes))


@dataclass(frozen=True)
class Cost:
    """Of a sweep, by `plan`. is_stale: the sweep's settings are others than when it was planned."""

    machine: str
    runs: int
    gpu_hours: float
    hours: float
    is_stale: bool


def plans() -> dict[str, Any]:
    """The recorded plans, by the sweep's path."""
    return dict(json.loads(PLANS.read_text())) if PLANS.is_file() else {}


def cost_of(sweep: str) -> Cost | None:
    """None for a sweep that was not planned, such as one of the demos."""
    found = plans().get(sweep)
    if found is None:
        return None
    figures = [found[name] for name in ("machine", "runs", "gpu_hours", "hours")]
    return Cost(*figures, found["inputs"] != inputs_of(sweep))


def inputs_of(sweep: str) -> str:
    """Hash of all that a sweep and its configs state, comments left out, 16 hex digits."""
    stated = [_stated(file) for file in (sweep, *bases_of(sweep))]
    text = json.dumps([stated[0], stated[1:]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def bases_of(sweep: str) -> list[str]:
    """The configs that a sweep begins with."""
    base = _stated(sweep)["base"]
    return [base] if isinstance(base, str) else list(base)


def runs_of(sweep: str) -> int:
    """How many runs a sweep has."""
    from adrpo_scale.run.sweep import read_sweep

    return len(read_sweep(ROOT / sweep).elements)


def _stated(file: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / file).read_text())
