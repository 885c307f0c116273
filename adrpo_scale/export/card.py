"""The model card of an export: its content, its origin and its use.

A card holds no facts about the machine: paths are cut to their last part, and the setting that
holds a shell command is left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from adrpo_scale.core.disk_space import size_text
from adrpo_scale.core.files import open_regular
from adrpo_scale.core.markdown import code, inline, table
from adrpo_scale.core.printable import one_line, printable
from adrpo_scale.domains.export_target import ExportTarget
from adrpo_scale.export.base import Base, Form, Use, Written, last_name
from adrpo_scale.export.copies import is_path
from adrpo_scale.export.layouts import layout_of
from adrpo_scale.export.verify import Verdict

CARD = "README.md"
_FRONT = 1 << 16  # bytes of a card in which its metadata lie
_FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
_LICENCE_KEYS = ("license", "license_name", "license_link")
_LICENCE = re.compile(
    rf"^({'|'.join(_LICENCE_KEYS)}):[ \t]+(.*?)(?:[ \t]+#.*)?[ \t]*\r?$", re.MULTILINE
)
_QUOTED = re.compile(r"""'((?:[^']|'')*)'|"([^"\\]*)\"""")
_SPECIAL = ("", *"[]{}&*!|>@%`'\",?-#:")  # what a plain text of YAML does not begin with
_SHELL = ("checkpoint.quota_command",)  # may hold names of hosts and users

Metric = tuple[str, str, float | None, float | None]
"""(metric, split, value of the base model, value of the exported one)."""


@dataclass(frozen=True)
class Provenance:
    """The facts that a checkpoint and its run's folder hold. settings: all, by dotted path.
    evaluated: the iteration of `metrics`; None without any. rewards: name → count, mean, m2 (sum of
    squared deviations), min, max. origin: the iteration and run that training started from.
    prompts: the evaluated ones, with a hash; "" where they were not kept."""

    run: str
    iteration: int
    package: str
    world_size: int
    is_ema: bool
    settings: Mapping[str, Any]
    metrics: Sequence[Metric]
    evaluated: int | None
    rewards: Mapping[str, Mapping[str, float]]
    origin: str | None
    prompts: str = ""


@dataclass(frozen=True)
class Story:
    """The contents of a card. licence: the base card's `license…` fields. lora: rank and alpha of
    training; None after full training."""

    form: Form
    dtype: str
    base: Base
    licence: Mapping[str, Any]
    target: ExportTarget
    provenance: Provenance
    written: Written
    verdict: Verdict | None
    lora: Mapping[str, Any] | None


def base_licence(folder: Path) -> dict[str, str]:
    """`license`, `license_name` and `license_link` of the base model's card, as far as it states
    them as texts of a line. Read without a parser of YAML: kilobytes of it can take minutes."""
    try:
        with open_regular(folder / CARD) as file:
            text = file.read(_FRONT).decode(errors="replace")
    except OSError:
        return {}
    front = _FRONT_MATTER.match(text)
    lines = _LICENCE.findall(front[1]) if front else []
    found = {name: _plain(value) for name, value in lines}
    return {name: found[name] for name in _LICENCE_KEYS if found.get(name)}


def _plain(value: str) -> str:
    """The text of a YAML value; "" where it is null, or no text of one line."""
    quoted = _QUOTED.fullmatch(value)
    if quoted:
        text = quoted[2] if quoted[1] is None else quoted[1].replace("''", "'")
    else:
        text = "" if value[:1] in _SPECIAL or value in ("null", "~") else value
    return one_line(text.strip())


def write_card(story: Story, folder: Path) -> None:
    """Writes the export's README.md, with the hub's metadata on top."""
    algorithm = story.provenance.settings["algorithm.name"]
    # The hub accepts no other name of a base than an id.
    base = one_line(story.base.name) if story.base.is_hub_id else None
    licence: dict[str, Any] = {name: one_line(text) for name, text in story.licence.items()}
    data = ModelCardData(
        base_model=base,
        library_name=story.target.library,
        pipeline_tag=story.target.task,
        tags=[
            "adrpo_scale",
            "reinforcement-learning",
            one_line(algorithm),
            *_form_tags(story.form),
        ],
        **licence,
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_text(story)}"
    ModelCard(printable(text)).save(folder / CARD)


def _form_tags(form: Form) -> list[str]:
    return ["lora", "peft"] if form == "adapter" else []


def _text(story: Story) -> str:
    sections = [
        f"# {inline(last_name(story.provenance.run))}, iteration {story.provenance.iteration}",
        _summary(story),
        _licence(story),
        "## Use",
        _usage(story),
        "## Results",
        _results(story.provenance),
        "## Training",
        _training(story.provenance),
        "## Verification",
        _verification(story),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(story: Story) -> str:
    source, base = story.provenance, story.base
    what = layout_of(story.target).summary(story.form, story.target)
    part = f"{story.target.component} weights".strip()
    average = " The weights are the moving average (EMA) of the trained ones." * source.is_ema
    revision = f", revision {code(base.revision)}" if base.revision else ""
    return (
        f"{what}, fine-tuned by online reinforcement learning "
        f"({inline(source.settings['algorithm.name'])}) with adrpo_scale "
        f"{inline(source.package)}.{average}\n\n"
        f"* base model: {code(base.name)}{revision}\n"
        f"* sha256 of the base's {part}: `{base.sha256}`\n"
        f"* {story.dtype}, {size_text(story.written.bytes)} of weights in "
        f"{len(story.written.files)} file{'s' * (len(story.written.files) > 1)}" + _strength(story)
    )


def _strength(story: Story) -> str:
    if story.form != "adapter" or story.lora is None:
        return ""
    rank, alpha = story.lora["rank"], story.lora["alpha"]
    return (
        f"\n* rank {rank}, alpha {rank}: the factor of training, {alpha:g} / {rank}, is in the "
        "tensors, so tools that read no alpha apply them at full strength"
    )


def _licence(story: Story) -> str:
    licence = story.licence
    if not licence:
        return (
            "Licence: unknown, because the base model's card states none. The base model's terms "
            "apply to this derivative; look them up where the base model was published."
        )
    named = " ".join(licence[n] for n in ("license", "license_name") if n in licence)
    link = f" ({inline(licence['license_link'])})" if "license_link" in licence else ""
    return f"Licence: {inline(named)}{link}, the base model's."


def _usage(story: Story) -> str:
    """Markdown: blocks of Python that run unchanged inside the export's folder."""
    settings = story.provenance.settings
    use = Use(
        form=story.form,
        base=story.base,
        target=story.target,
        dtype=settings["engine.dtype"],
        rank=story.lora["rank"] if story.lora is not None else None,
    )
    intro = "Inside this folder (or with its path or hub id in place of `.`):"
    return "\n\n".join([intro, *layout_of(story.target).usage(use)])


def _results(source: Provenance) -> str:
    rewards = [
        [
            inline(name),
            str(int(r["count"])),
            *map(_number, (r["mean"], _std(r), r["min"], r["max"])),
        ]
        for name, r in source.rewards.items()
    ]
    text = "Rewards of every sample of the training so far:\n\n" + table(
        [["reward", "samples", "mean", "std", "min", "max"], *rewards]
    )
    if source.evaluated is None:
        return text + "\n\nThere was no evaluation up to this iteration."
    weights = {"raw": "the trained weights", "ema": "their moving average (EMA)"}
    which = weights[source.settings["evaluation.weights"]]
    rows = [
        [inline(metric), inline(split), _number(before), _number(after)]
        for metric, split, before, after in source.metrics
    ]
    header = ["metric", "prompts", "base model", f"iteration {source.evaluated}"]
    found = f"{text}\n\nEvaluation on fixed prompts with a fixed seed, of {which}:\n\n"
    under = f"\n\nPrompts of {inline(source.prompts)}." if source.prompts else ""
    return found + table([header, *rows]) + under


def _std(reward: Mapping[str, float]) -> float:
    return math.sqrt(reward["m2"] / (reward["count"] - 1)) if reward["count"] > 1 else 0.0


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _training(source: Provenance) -> str:
    settings = source.settings
    facts = [
        f"* run: {inline(last_name(source.run))}, after {source.iteration} iterations",
        f"* seed: {settings['seed']}; algorithm: {inline(settings['algorithm.name'])}; processes: "
        f"{source.world_size}",
        *([f"* started from {inline(source.origin)}"] if source.origin else []),
    ]
    given = {p: v for p, v in settings.items() if v is not None and p not in _SHELL}
    values = [f"{one_line(path)} = {json.dumps(public(value))}" for path, value in given.items()]
    return "\n".join(facts) + "\n\nEvery setting:\n\n```toml\n" + "\n".join(values) + "\n```"


def public(value: Any) -> Any:
    """A setting's value with paths cut to their last part."""
    if isinstance(value, list):
        return [public(item) for item in value]
    return last_name(value) if isinstance(value, str) and is_path(value) else value


def _verification(story: Story) -> str:
    written, verdict = story.written, story.verdict
    text = (
        f"{written.changed} of the {written.trained} trained tensors differ from the base model's "
        "in this export."
    )
    if verdict is None:
        return text + " It was not verified any further."
    how = {
        "outputs": "Loaded by another process and run in float32 on fixed inputs, against the "
        "policy rebuilt from the checkpoint; as shares of the outputs' size:",
        "tensors": "Every tensor was read again by another process; values against a merge in "
        "float64:",
    }[verdict.level]
    figures = [f"* {name}: {value:.3g}" for name, value in verdict.figures.items()]
    versions = ", ".join(f"{name} {version}" for name, version in verdict.versions.items())
    warning = [f"* note: {inline(verdict.warning)}"] if verdict.warning else []
    return "\n".join([text, "", how, "", *figures, *warning, f"* with {versions}"])
