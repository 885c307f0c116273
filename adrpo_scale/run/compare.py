"""Comparison of a run with its checkpoint before it resumes: settings, prompts, base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adrpo_scale.checkpoint.reader import Reader
from adrpo_scale.core import dist
from adrpo_scale.core.errors import CheckpointError, ConfigError, agreed
from adrpo_scale.core.settings import Effect, leaves, notes_of, walk
from adrpo_scale.core.types import Prompt
from adrpo_scale.domains.base import Domain
from adrpo_scale.hub.weights import WeightSource, combined_sha256, revision_of
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.load import parse_config
from adrpo_scale.run.sections import current_key, modern

_MISSING = object()


@dataclass(frozen=True)
class Change:
    """A setting with another value than in the checkpoint. before, after: as JSON text."""

    path: str
    before: str
    after: str
    effect: Effect

    def __str__(self) -> str:
        return f"{self.path}: {self.before} → {self.after}"


def settings_changes(before: Mapping[str, Any], config: RunConfig) -> list[Change]:
    """The settings that differ between a checkpoint and this run.

    A setting that is newer than the checkpoint has the value that it declares for older runs there.
    A key that is not a setting any more has the effect `maths`, because nothing is known of it.
    """
    old, new = dict(leaves(modern(before)[0])), dict(leaves(config.resolved()))
    for leaf in walk(config):
        notes = notes_of(leaf.info)
        if "before" in notes:
            old.setdefault(leaf.path, notes["before"])
    effects = _effects(before) | config.effects()
    return [
        Change(path, _text(old, path), _text(new, path), effects.get(path, "maths"))
        for path in dict.fromkeys([*old, *new])
        if old.get(path, _MISSING) != new.get(path, _MISSING)
    ]


def _effects(settings: Mapping[str, Any]) -> dict[str, Effect]:
    """Effects of a checkpoint's settings; {} where this version does not know all of them."""
    try:
        return parse_config(settings).effects()
    except ConfigError:
        return {}


def _text(values: Mapping[str, Any], path: str) -> str:
    return json.dumps(values[path]) if path in values else "(not there)"


def is_allowed(path: str, allowed: Sequence[str]) -> bool:
    """True where `--allow-change` names the key or a section around it."""
    return any(path == key or path.startswith(f"{key}.") for key in allowed)


def check_settings(reader: Reader, config: RunConfig, allowed: Sequence[str]) -> list[str]:
    """Notes on the settings that changed since the checkpoint, one line each, for the log.

    ConfigError, listing them, where some change learning and `--allow-change` does not name them.
    """
    changes = settings_changes(reader.manifest.document["config"], config)
    allowed = [current_key(key, config.resolved()) for key in allowed]
    refused = [
        change
        for change in changes
        if change.effect == "maths" and not is_allowed(change.path, allowed)
    ]
    if refused:
        listed = "".join(f"\n    {change}" for change in refused)
        raise ConfigError(
            f"these settings change what is learned, and the run's checkpoint of iteration "
            f"{reader.iteration} has others:{listed}\n"
            "Set them back, choose another --run-dir, or change them in the middle of the run with "
            + " ".join(f"--allow-change {change.path}" for change in refused)
        )
    notes = {"maths": "allowed", "content": "its content is compared", "rounding": "rounding only"}
    return [f"{c} ({notes.get(c.effect, 'changes nothing that is learned')})" for c in changes]


def constant_facts(
    config: RunConfig, run: Path, domain: Domain, train: Sequence[Prompt], origin: Reader | None
) -> dict[str, Any]:
    """The facts that each checkpoint of a run carries. Hashes the base weights."""
    spec = domain.policy_spec()
    began_from = None
    if origin is not None:
        began_from = {"run": origin.manifest.document["run"], "iteration": origin.iteration}
    return {
        "run": run.name,
        "identity": config.digest(),
        "package": version("adrpo_scale"),
        "world_size": dist.world_size(),
        "config": config.resolved(),
        "base": {
            "model": config.domain.model,
            "revision": revision_of(domain.folder),
            "sha256": spec.weights.sha256(),
            "frozen": combined_sha256(domain.frozen_files(), domain.folder),
        },
        "rules": domain.rules(),
        "lora": spec.lora and {"rank": spec.lora.rank, "alpha": spec.lora.alpha},
        "prompts": prompts_digest(train),
        "origin": began_from,
    }


def base_fault(reader: Reader, weights: WeightSource) -> str | None:
    """Why these are not the base weights that a checkpoint was trained on; None where they are.
    Reads all of them, where their hashes are not remembered."""
    stated, found = reader.manifest.document["base"], weights.sha256()
    if found == stated["sha256"]:
        return None
    return (
        f"{reader.folder} was trained on {stated['model']} with weights of sha256 "
        f"{stated['sha256'][:12]}…, but {weights.folder} has {found[:12]}…"
    )


def require_base(reader: Reader, domain: Domain) -> None:
    """Raises CheckpointError where adapters would be added to other weights than those that they
    were trained on."""
    if reader.manifest.document["lora"] is None:
        return
    fault = base_fault(reader, domain.policy_spec().weights)
    if fault is not None:
        raise CheckpointError(
            f"{fault}: restore that model, or name the folder that has it as domain.model"
        )


def prompts_digest(*lists: Sequence[Prompt]) -> str:
    """Hash of the prompts' texts and metadata, in order: a cursor is valid in these only.
    The folder of clips is left out, because data may move between two starts of a run, and so is
    what was made from the other fields."""
    facts = [[_without_place(asdict(prompt)) for prompt in prompts] for prompts in lists]
    text = json.dumps(facts, sort_keys=True, default=str)  # str is for dates in parquet rows
    return hashlib.sha256(text.encode()).hexdigest()


def _without_place(prompt: dict[str, Any]) -> dict[str, Any]:
    left_out = ("audio_folder", *prompt["derived"])
    metadata = {k: v for k, v in prompt["metadata"].items() if k not in left_out}
    facts = {k: v for k, v in prompt.items() if k not in ("derived", "place")}
    return facts | {"metadata": metadata}


def check_content(reader: Reader, constant: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raises CheckpointError where base model or prompts differ from the checkpoint's."""
    before = reader.manifest.document
    beside = before["base"].get("frozen")  # the first checkpoints did not state it
    if beside not in (None, constant["base"]["frozen"]) and not is_allowed("base", allowed):
        raise agreed(
            CheckpointError(
                f"{reader.folder} was trained with other files beside the trained weights than "
                f"{constant['base']['model']} has now (config, tokenizer, chat template; text "
                "encoders, VAE, scheduler). Bring the same model back, or pass --allow-change base"
            )
        )
    if before["base"]["sha256"] != constant["base"]["sha256"] and not is_allowed("base", allowed):
        raise agreed(
            CheckpointError(
                f"{reader.folder} was trained on other base weights: {before['base']['model']} "
                f"(sha256 {before['base']['sha256'][:12]}…), now {constant['base']['model']} "
                f"({constant['base']['sha256'][:12]}…). Bring the same model back, or pass "
                "--allow-change base"
            )
        )
    if before["prompts"] != constant["prompts"] and not is_allowed("prompts", allowed):
        raise agreed(
            CheckpointError(
                f"{reader.folder} was trained on other prompts: the files of [prompts] have "
                "changed, so its position in them is not valid. Bring the same files back, or pass "
                "--allow-change prompts"
            )
        )
    pictures = before.get("pairs")
    if pictures not in (None, constant.get("pairs")) and not is_allowed("prompts", allowed):
        raise agreed(
            CheckpointError(
                f"{reader.folder} was trained on other pictures: files that the given pairs name "
                "have changed. Bring the same files back, or pass --allow-change prompts"
            )
        )
