"""The models and data sets that an evaluation reads, before any of them is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.core.errors import AdrpoError, given
from adrpo_scale.domains.flow import UNREAD
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.mmau import local
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.evaluation.peft_adapters import adapters_need
from adrpo_scale.evaluation.rows import Row, rows_of
from adrpo_scale.evaluation.sample import model_source
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.load import parse_config

_PICTURES = ("model_index.json", "*/*")  # parts of a pipeline, and not single files beside them


def needs_of_mmau(config: MmauConfig, model: str | None) -> list[HubNeed]:
    """Those of the model that is asked. model: of `--model`; None for an endpoint."""
    if model is None:
        return []
    source = local.hearing_source(every_checkpoint(model)[-1], config)
    return list(source.config.domain.needs_from_hub())


def needs_of_rows(config: AskedConfig, rows: Sequence[Row]) -> list[HubNeed]:
    """Those of the judged models. rows: of `rows_of`."""
    return [need for row in rows for need in needs_of_row(config, row)]


def needs_of_row(config: AskedConfig, row: Row) -> list[HubNeed]:
    """The base of a run, or the pipeline with its adapters."""
    what = f"models.{row.key}"
    if row.config is not None:
        needs = parse_config(row.config).domain.needs_from_hub()
        return [replace(need, what=f"{what}: {need.what}") for need in needs]
    name = given(row.model.pipeline)
    if config.MEDIUM == "pictures":
        found = [HubNeed(name, f"{what}.pipeline", _PICTURES, UNREAD, revision=row.model.revision)]
    else:
        needs = model_source(name, "text").config.domain.needs_from_hub()
        stated = {"what": f"{what}.pipeline", "revision": row.model.revision}
        found = [replace(need, **stated) for need in needs]
    lora = row.model.lora
    return found if lora is None else [*found, adapters_need(lora, f"{what}.lora")]


def needs_of(config: AskedConfig | MmauConfig, model: str | None = None) -> list[HubNeed]:
    """All that an evaluation reads. model: of `--model`, of MMAU. Raises ConfigError where a run is
    not there."""
    if isinstance(config, MmauConfig):
        return needs_of_mmau(config, model)
    return [*config.needs_from_hub(), *needs_of_rows(config, rows_of(config.rows))]


def bytes_here(need: HubNeed) -> int:
    """Bytes of a need's files on this machine; 0 where they are not here."""
    try:
        folder = find_here(need)
    except AdrpoError:
        return 0
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sum(p.stat().st_size for p in files if need.covers(p.relative_to(folder).as_posix()))
