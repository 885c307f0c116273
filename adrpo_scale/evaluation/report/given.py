"""What `report` is given: folders of runs and evaluations, and bundles of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.named import EVALUATED, named
from adrpo_scale.evaluation.report.evaluated import Evaluated, read_runs, unevaluated
from adrpo_scale.evaluation.report.homes import without_home
from adrpo_scale.evaluation.report.unbundle import Bundle, is_bundle, read_bundle
from adrpo_scale.hub.lock import lock_path


@dataclass(frozen=True)
class Given:
    """runs: in the order of their names. line: what stands beneath the tables about a sweep.
    left_out: folders without an evaluation. tried: runs that the bundles' makers did not show.
    locks: files that pin models and datasets."""

    runs: tuple[Evaluated, ...]
    line: str = ""
    left_out: tuple[Path, ...] = ()
    tried: tuple[Mapping[str, Any], ...] = ()
    locks: tuple[Path, ...] = ()


def read_given(
    names: Sequence[str], weights: str, new_folder: Callable[[], Path], line: str = ""
) -> Given:
    """Reads runs by their names. new_folder: makes an empty one, for what a bundle holds. line:
    about the sweep that the runs are of."""
    folders = {name: named(name).folder for name in names}
    bundles: dict[str, Bundle] = {}
    for name, path in folders.items():
        if is_bundle(path):
            word = None if weights == EVALUATED else weights
            bundles[name] = read_bundle(path, new_folder(), word)
    others = [path for name, path in folders.items() if name not in bundles]
    left_out = unevaluated(others)
    runs: list[Evaluated] = []
    for name in names:
        if name in bundles:
            runs += bundles[name].runs
        elif folders[name] not in left_out:
            runs += read_runs(name, weights)
    found = bundles.values()
    lines = [str(without_home(line)), *(bundle.line for bundle in found)]
    locks = [lock for bundle in found for lock in bundle.locks]
    if others and lock_path().is_file():
        locks.append(lock_path())
    return Given(
        tuple(runs),
        "\n".join(text for text in lines if text),
        tuple(left_out),
        tuple(one for bundle in found for one in bundle.tried),
        tuple(locks),
    )
