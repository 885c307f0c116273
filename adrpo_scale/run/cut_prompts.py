"""Prompts that encoders cut: warned of when a run is built, and listed in its folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adrpo_scale.core.files import replace_json
from adrpo_scale.core.json_files import read_object

if TYPE_CHECKING:  # `status` needs the line alone, not torch
    from adrpo_scale.core.types import Prompt
    from adrpo_scale.domains.base import Domain
    from adrpo_scale.rewards.base import Reward

log = logging.getLogger(__name__)

FILE = "cut_prompts.json"


def report_cut(
    domain: Domain, rewards: Sequence[Reward], prompts: Sequence[Prompt], run: Path | None = None
) -> None:
    """Warns of prompts that the domain's or a reward's encoders do not read whole, or cannot tell
    apart, and lists all of them in the run's folder. For rank 0 only."""
    readings = []
    for reads in (domain.reads, *(reward.reads for reward in rewards)):
        try:
            readings.append(reads(prompts))
        except (OSError, ValueError) as error:  # the encoder's own loading names the fault
            log.warning("prompts that are cut cannot be counted: %s", error)
    found = [each for each in readings if each is not None]
    for line in [line for each in found for line in each.warnings()]:
        log.warning("%s", line)
    if run is None or not found:
        return
    try:
        replace_json(run / FILE, {each.who: each.as_json() for each in found})
    except OSError as error:
        log.warning("%s cannot be written: %s", run / FILE, error)


def cut_text(run: Path) -> str | None:
    """One line about a run's list: "2 of 444 cut (model: text_encoder, text_encoder_2)". None
    without the list, or where nothing is cut."""
    try:
        stated: Any = read_object(run / FILE) or {}
        parts = [text for who, facts in stated.items() if (text := _text(who, facts))]
    except (KeyError, TypeError, AttributeError):
        return None
    return "; ".join(parts) or None


def _text(who: str, facts: dict[str, Any]) -> str:
    cut = {name: each["cut"] for name, each in facts["encoders"].items() if each["cut"]}
    words = []
    if cut:
        number = len(set().union(*cut.values()))
        words.append(f"{number} of {facts['prompts']} are cut by {who} ({', '.join(cut)})")
    if facts["alike"]:
        words.append(f"{sum(map(len, facts['alike']))} share embeddings of {who}")
    return ", ".join(words)
