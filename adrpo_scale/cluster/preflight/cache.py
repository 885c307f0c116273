"""The prompts of a run, and the cache that their embeddings go to; before any model is loaded.

Every node must be able to write the cache's folder and see what rank 0 writes there, and its disk
must have room for what the run will add. Domains that cache nothing need none of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.cluster.preflight.base import Check, Finding, counted
from adrpo_scale.cluster.preflight.judging import alike, by_value, found
from adrpo_scale.cluster.preflight.node import Node
from adrpo_scale.core.caches import REMEDY, cache_root
from adrpo_scale.core.disk_space import free_space, shortage, size_text
from adrpo_scale.core.errors import AdrpoError, given
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompts import build_prompts
from adrpo_scale.engines.spec import DTYPES
from adrpo_scale.hub.lock import check
from adrpo_scale.run.build import build_domain
from adrpo_scale.run.given_pairs import has_given_pairs, take_pairs
from adrpo_scale.run.registry import DOMAINS


@dataclass(frozen=True)
class CacheNeed:
    """What a run adds to the cache. folder: the cache's; None where it has none. bytes: None where
    the domain caches nothing. prompts: how many there are; None where they cannot be read here.
    faults: why. cuts: lines about prompts that encoders cut; None where no encoder was asked."""

    folder: Path | None
    bytes: int | None = None
    prompts: int | None = None
    faults: tuple[str, ...] = ()
    cuts: tuple[str, ...] | None = None


def cache_need(config: Any) -> CacheNeed:
    """Reads the prompts. A data set that is not here is the business of the check of models."""
    try:
        folder = cache_root()
    except AdrpoError as error:
        return CacheNeed(None, faults=(str(error),))
    if check(config.prompts.needs_from_hub()):
        return CacheNeed(folder)
    try:
        train, held_out = build_prompts(config.prompts)
        _take_pairs(config, train)
        prompts = [*train, *held_out]
        size = _bytes(config, prompts)
        return CacheNeed(folder, size, len(prompts), cuts=_cuts(config, prompts))
    except AdrpoError as error:
        return CacheNeed(folder, faults=(str(error),))


def _take_pairs(config: Any, train: Sequence[Prompt]) -> None:
    """Raises PromptError for rows that are no pairs, where the run trains on given ones and the
    model is here, whose tokenizer counts them."""
    if has_given_pairs(config) and not check(config.domain.needs_from_hub()):
        take_pairs(config, build_domain(config), train)


def _bytes(config: Any, prompts: Sequence[Prompt]) -> int | None:
    """None also where the model is not here, which the check of models reports."""
    try:
        domain = DOMAINS[config.domain.name]
        return domain.bytes_to_cache(config.domain, prompts, DTYPES[config.engine.dtype])
    except AdrpoError:
        return None


def _cuts(config: Any, prompts: Sequence[Prompt]) -> tuple[str, ...] | None:
    """Counts tokens without a model. A look-up of a model that is not here would download it."""
    if check(config.domain.needs_from_hub()):
        return None
    try:
        readings = build_domain(config).reads(prompts)
    except (AdrpoError, OSError, ValueError):  # the check of models names it
        return None
    return None if readings is None else tuple(readings.warnings())


def check_prompts(need: CacheNeed) -> Check:
    """The prompt files can be read, every row of them, and the encoders read each prompt whole."""
    findings = [
        Finding("fault", fault, "prompt files whose rows can all be read", "each line says where")
        for fault in need.faults
    ]
    whole = "prompts that are read whole"
    findings += [
        Finding("warning", cut, whole, "the line says what helps") for cut in need.cuts or ()
    ]
    stated = "read once the data set is here"
    if need.prompts is not None:
        encoders = "" if need.cuts is None else ", read whole by every encoder"
        stated = counted(need.prompts, "prompt") + encoders
    return Check("prompts", stated, tuple(findings))


def check_cache(nodes: Sequence[Node], need: CacheNeed, checkpoints: int) -> Check:
    """The cache can be written on every node and has room. checkpoints: bytes that the run's
    checkpoints take on the same disk."""
    if need.bytes is None:
        return Check("cache", "the run adds nothing to it, or its model is not here")
    findings = []
    views = [
        (lambda n: n.facts.cache and n.facts.cache.unwritable, "cannot be written"),
        (lambda n: n.facts.cache and n.facts.cache.unseen, "is not the one of the other nodes"),
    ]
    for view, what in views:
        for why, bad in alike(by_value(nodes, view)):
            value = f"the cache {need.folder} {what}: {why}"
            findings.append(found(bad, nodes, "fault", value, "one that all nodes write", REMEDY))
    try:
        space = free_space(given(need.folder))
    except AdrpoError as error:
        findings.append(Finding("fault", str(error), "a number of bytes", REMEDY))
        return Check("cache", "", tuple(findings))
    amount = f"{size_text(need.bytes)} of prompt embeddings in {need.folder}"
    if need.bytes and shortage(space, need.bytes + checkpoints, 1):
        also = f" beside {size_text(checkpoints)} of checkpoints" if checkpoints else ""
        free = f"{size_text(space.free_bytes)} free by the {space.source}"
        remedy = "make room, use fewer prompts, or point ADRPO_CACHE at a larger disk"
        findings.append(Finding("fault", f"{need.folder}: {free}", amount + also, remedy))
    return Check("cache", f"{size_text(space.free_bytes)} free; {amount}", tuple(findings))
