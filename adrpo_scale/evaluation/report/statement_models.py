"""Models and datasets of a statement: revisions, hashes and licences, as far as they are recorded.

A checkpoint records its base model's revision and hash, `prefetch.lock` the revision and the
licence of each repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.core.json_files import read_object, section_of
from adrpo_scale.core.paths import DEMO_PREFIX
from adrpo_scale.evaluation.report.document import Grid
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.homes import without_home
from adrpo_scale.evaluation.report.origins import run_folder
from adrpo_scale.evaluation.report.statement_settings import config_of
from adrpo_scale.hub.lock import LockedRepo, read_lock
from adrpo_scale.hub.needs import Key, joined

UNKNOWN = "not recorded"
_NAMES = (".model", "model.pipeline", "model.lora", "prompts.train", "prompts.held_out")
_HEAD = ("name", "what", "revision", "licence")


def models_grid(runs: Sequence[Evaluated], locks: Sequence[Path]) -> Grid:
    """A line for each model and dataset that the runs name."""
    pins = _pins(locks)
    rows: dict[tuple[str, str], tuple[str, str]] = {}
    for run in runs:
        base = _base(run)
        for name, kind, what in _named(run):
            revision, licence = rows.get((name, what), (UNKNOWN, UNKNOWN))
            pin = pins.get(("dataset" if kind == "dataset" else "model", name))
            if pin is not None:
                revision, licence = pin.revision, pin.licence or UNKNOWN
            elif name.startswith(DEMO_PREFIX):
                revision, licence = "a file of adrpo_scale", "that of adrpo_scale"
            if name == base.get("model"):
                revision = _of_base(base, revision)
            rows[name, what] = revision, licence
    lines = [(name, what, *facts) for (name, what), facts in sorted(rows.items())]
    return Grid((_HEAD, *lines), "Models and datasets.")


def _pins(locks: Sequence[Path]) -> Mapping[Key, LockedRepo]:
    found: dict[Key, LockedRepo] = {}
    for lock in locks:
        try:
            found |= read_lock(lock)
        except AdrpoError:
            continue  # then nothing is recorded
    return found


def _named(run: Evaluated) -> list[tuple[str, str, str]]:
    """(name, type, setting) of what a run reads."""
    config = config_of(run)
    if config is not None:
        needs = joined(config.needs_from_hub())
        found = [(need.name, str(need.type), need.what) for need in needs]
        files = [
            ("prompts.train", config.prompts.train),
            ("prompts.held_out", config.prompts.held_out),
        ]
        known = {name for name, _, _ in found}
        found += [(str(n), "file", what) for what, n in files if n is not None and n not in known]
        return [(str(without_home(name)), kind, what) for name, kind, what in found]
    names = {k: v for k, v in run.settings.items() if k.endswith(_NAMES) and isinstance(v, str)}
    return [(name, "model", key) for key, name in names.items()]


def _base(run: Evaluated) -> Mapping[str, Any]:
    """What the run's newest checkpoint says of its base model."""
    folder = run_folder(run)
    if folder is None:
        return {}
    manifests = sorted(folder.glob("checkpoints/step-*/manifest.json"), reverse=True)
    document = section_of(read_object(manifests[0]) or {} if manifests else {}, "document")
    base = without_home(section_of(document, "base"))
    return base if isinstance(base, dict) else {}


def _of_base(base: Mapping[str, Any], revision: str) -> str:
    stated = base.get("revision") or revision
    digest = base.get("sha256")
    return f"{stated}; weights sha256 {str(digest)[:16]}" if digest else str(stated)
