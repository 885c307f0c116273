"""The models and data sets that an evaluation reads, before any of them is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adrpo_scale.checkpoint.locate import every_checkpoint
from adrpo_scale.core.errors import AdrpoError, given
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.images import opening
from adrpo_scale.evaluation.images.making import pipeline_of
from adrpo_scale.evaluation.mmau import local
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.evaluation.peft_adapters import adapters_need
from adrpo_scale.evaluation.rows import Row, rows_of
from adrpo_scale.evaluation.sample import model_source
from adrpo_scale.hub.lock import find_here
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.sweep import read_sweep
from adrpo_scale.run.sweep_runs import runs_of


@dataclass(frozen=True)
class Found:
    """needs: of the parts that are known. notes: a line for each model that is not."""

    needs: list[HubNeed]
    notes: list[str]


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
    if config.MEDIUM == "pictures":
        return [replace(n, what=f"{what}.{n.what}") for n in opening.needs_of(pipeline_of(row))]
    needs = model_source(given(row.model.pipeline), "text").config.domain.needs_from_hub()
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


def needs_so_far(config: AskedConfig | MmauConfig, model: str | None) -> Found:
    """As `needs_of`, where runs need not have begun: their own configs say what they read."""
    if isinstance(config, MmauConfig):
        return Found(needs_of_mmau(config, model), [])
    needs, notes = config.needs_from_hub(), []
    for key, asked in config.rows.items():
        try:
            if asked.sweep is not None:
                needs += _of_sweep(Path(asked.sweep))
            else:
                needs += needs_of_rows(config, rows_of({key: asked}))
        except AdrpoError as error:
            if asked.run is None:
                raise
            notes.append(f"models.{key} is left out: {error}; name its config beside this file")
    return Found(needs, notes)


def _of_sweep(file: Path) -> list[HubNeed]:
    runs = runs_of(read_sweep(file))
    return [need for run in runs for need in run.loaded.config.domain.needs_from_hub()]


def weights_here(need: HubNeed) -> list[tuple[str, int]]:
    """(path, bytes) of the weight files of a need that are on this machine."""
    return [(name, size) for name, size in _files(need) if name.endswith(".safetensors")]


def bytes_here(need: HubNeed) -> int:
    """Bytes of a need's files on this machine; 0 where they are not here."""
    return sum(size for _, size in _files(need))


def _files(need: HubNeed) -> list[tuple[str, int]]:
    try:
        folder = find_here(need)
    except AdrpoError:
        return []
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return [(n, p.stat().st_size) for n, p in paths.items() if p.is_file() and need.covers(n)]
