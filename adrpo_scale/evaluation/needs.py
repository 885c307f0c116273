"""The models and data sets that an evaluation reads, before any of them is loaded."""

from __future__ import annotations

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.core.errors import AdrpoError
from adrpo_scale.evaluation.mmau import local
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed


def needs_of_mmau(config: MmauConfig, model: str | None) -> list[HubNeed]:
    """Those of the model that is asked. model: of `--model`; None for an endpoint."""
    if model is None:
        return []
    source = local.hearing_source(every_checkpoint(model)[-1], config)
    return list(source.config.domain.needs_from_hub())


def bytes_here(need: HubNeed) -> int:
    """Bytes of a need's files on this machine; 0 where they are not here."""
    try:
        folder = find_here(need)
    except AdrpoError:
        return 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(p.stat().st_size for p in files if need.covers(p.relative_to(folder).as_posix()))
