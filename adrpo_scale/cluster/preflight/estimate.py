"""The estimated size of a run's checkpoints, before any model is loaded; on rank 0 alone.

Checkpoints hold the trained parameters, Adam's two moments and, with `ema_decay` or a moving
reference, an average each, all in float32. The size is that of the run's newest checkpoint, or
follows from the headers of the weight files; `train` checks again with exact sizes once its model
is loaded.
"""

from __future__ import annotations

import math
from pathlib import Path

from adrpo_scale.checkpoint.shelf import CHECKPOINTS, committed
from adrpo_scale.cluster.preflight.base import Check, Finding
from adrpo_scale.cluster.preflight.checks import check_space
from adrpo_scale.cluster.preflight.survey import nearest
from adrpo_scale.core.disk_space import free_space
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.engines.spec import LoraConfig
from adrpo_scale.hub.lock import find_here
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import DOMAINS

_FLOAT32 = 4  # bytes


def space_check(config: RunConfig, run: Path, world: int) -> Check:
    """Space for the checkpoints that the run keeps and one being written, less existing ones."""
    settings = config.checkpoint
    there = committed(run / CHECKPOINTS) if run.is_dir() else {}
    size, how = _measured(there) if there else (_estimated(config), "estimated")
    count = max(1, settings.keep_last + settings.keep_best + 1 - len(there))
    try:
        space = free_space(run / CHECKPOINTS, settings.quota_command)
    except AdrpoError as error:
        remedy = "fix checkpoint.quota_command, or choose another --run-dir"
        return Check("space", "", (Finding("fault", str(error), "a number of bytes", remedy),))
    return check_space(space, str(run), size, count, count * (world + 2), how)


def bytes_beside(config: RunConfig, run: Path, folder: Path | None) -> int:
    """Bytes of the checkpoints to come, where they go to the disk of `folder`; 0 elsewhere."""
    if folder is None or nearest(run).stat().st_dev != nearest(folder).stat().st_dev:
        return 0
    settings = config.checkpoint
    there = committed(run / CHECKPOINTS) if run.is_dir() else {}
    size = _measured(there)[0] if there else _estimated(config)
    return (size or 0) * max(1, settings.keep_last + settings.keep_best + 1 - len(there))


def _measured(there: dict[int, Path]) -> tuple[int, str]:
    newest = there[max(there)]
    size = sum(path.stat().st_size for path in newest.iterdir() if path.is_file())
    return size, f"as {newest.name}"


def _estimated(config: RunConfig) -> int | None:
    """Bytes of a checkpoint; None where the weights are not here, which `check_models` reports."""
    try:
        elements = trained_elements(config)
    except AdrpoError:
        return None
    copies = 3 + (config.ema_decay is not None) + config.reference.moves
    return None if elements is None else copies * _FLOAT32 * elements


def trained_elements(config: RunConfig) -> int | None:
    """The number of trained elements (in full training slightly too high: files hold buffers, too);
    None for a domain whose weights are unknown here. Raises ModelNotFoundError where the model is
    not on this machine."""
    domain, table = config.domain, DOMAINS[config.domain.name]
    (need, *_) = domain.needs_from_hub()
    weights = table.weights_in(find_here(need))
    if weights is None:
        return None
    try:
        shapes = {name: weights.shape(name) for name in weights.names()}
    finally:
        weights.close()
    if domain.train == "full":
        return sum(math.prod(shape) for shape in shapes.values())
    lora = domain.lora or LoraConfig()
    targets = tuple(lora.targets) or table.adapted
    return sum(lora.rank * sum(s) for name, s in shapes.items() if _is_adapted(name, s, targets))


def _is_adapted(name: str, shape: tuple[int, ...], targets: tuple[str, ...]) -> bool:
    """True where this matrix [out, in] gets adapters [rank, in] and [out, rank]."""
    module, _, leaf = name.rpartition(".")
    named = any(module == target or module.endswith(f".{target}") for target in targets)
    return leaf == "weight" and len(shape) == 2 and named
