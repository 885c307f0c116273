"""What an evaluation file asks: prompt sets, samples, scorers, and the models that are judged.

`benchmark = "images"` and `benchmark = "text"` share these settings; `benchmark = "mmau"` has its
own, in `mmau.base`. Scorers are written as the rewards of a run are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from adrpo_scale.core.bounds import COUNT, NUMBER, REPEATS, SAMPLES, SIDE, TOKENS
from adrpo_scale.core.components import OneOf
from adrpo_scale.core.settings import REQUIRED, Effect, Section, setting
from adrpo_scale.data.prompt_files import needs_from_hub
from adrpo_scale.data.prompts import Format
from adrpo_scale.data.rows import Form, Reading
from adrpo_scale.domains.decoding import SamplingConfig as TokenSampling
from adrpo_scale.hub.needs import HubNeed
from adrpo_scale.rewards.base import RewardConfig
from adrpo_scale.run.registry import REWARDS

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # a part of a file's name, without , and @


class PromptSet(Section):
    """A set of prompts, read as [prompts] of a run reads a file."""

    name: str = setting("", "name of the set in tables; by default the file's, or its folder's")
    file: str = setting(
        REQUIRED,
        "prompt file or dataset folder; relative to the current folder, demo:... for a shipped "
        "one, or hub:OWNER/DATASET, with /FOLDER or /FILE and :SPLIT at its end",
        min_length=1,
    )
    format: Format = setting("auto", "its format; auto decides by the suffix and the first row")
    column: str | None = setting(
        None, "key of the prompt, as prompts.column of a run", min_length=1
    )
    answer: str | None = setting(
        None, "key of the reference answer, as prompts.answer of a run", min_length=1
    )
    answer_form: Form = setting(
        "auto", "where the answer stands in its text, as prompts.answer_form of a run"
    )

    @property
    def label(self) -> str:
        """The name of the set: that of the file, or of its folder where the file is `prompts`."""
        if self.name:
            return self.name
        path = Path(self.file.rpartition(":")[2])
        return path.parent.name if path.stem == "prompts" and path.parent.name else path.stem

    @property
    def reading(self) -> Reading:
        """How rows are read."""
        return Reading(self.column, self.answer, self.answer_form)


class SamplingConfig(Section):
    """How many samples are made of each prompt."""

    per_prompt: int = setting(4, "samples of a prompt and sampling seed", ge=1, le=REPEATS)
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] = setting(
        [0],
        "sampling seeds; the noise of a sample depends on its seed, prompt and number alone",
        min_length=1,
    )
    batch: int = setting(
        8, "samples at once; batches are cut by sample number, and always full", ge=1, le=COUNT
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds {seeds} name one twice: give each once")
        return seeds


class TextSampling(SamplingConfig):
    """How many completions are made of each prompt, and the distribution of their tokens."""

    max_new_tokens: int = setting(512, "largest number of tokens of a completion", ge=1, le=TOKENS)
    temperature: float = setting(
        1.0, "logits are divided by it; 0: greedy, one sample a prompt", ge=0, le=NUMBER
    )
    top_p: float = setting(
        1.0, "draw from the smallest set of tokens with this probability; 1: all", gt=0, le=1
    )
    top_k: int = setting(0, "draw from the k likeliest tokens; 0: all", ge=0, le=COUNT)

    @model_validator(mode="after")
    def _greedy_is_one_sample(self) -> TextSampling:
        if self.temperature == 0 and (self.per_prompt > 1 or len(self.seeds) > 1):
            raise ValueError(
                f"temperature = 0 is greedy, so that {self.per_prompt} samples a prompt and "
                f"{len(self.seeds)} sampling seeds would all be the same: set per_prompt = 1 and "
                "one seed, or a temperature above 0"
            )
        return self

    @property
    def tokens(self) -> TokenSampling:
        """The distribution of tokens."""
        own = {name: getattr(self, name) for name in TokenSampling.model_fields}
        return TokenSampling(**own)


class AskedModel(Section):
    """A model that is judged: a row of the table, or several where it names several runs."""

    run: str | None = setting(
        None, "RUN, RUN@120, RUN@last, RUN@best, RUN@* or a glob over runs", min_length=1
    )
    sweep: str | None = setting(
        None, "sweep file, for all of its runs that have begun", min_length=1
    )
    pipeline: str | None = setting(
        None, "a published model: folder, export, demo:NAME or hub id", min_length=1
    )
    weights: Literal["evaluated", "raw", "ema"] = setting(
        "evaluated", "of a run: the trained weights, their average, or what the run evaluates"
    )
    lora: str | None = setting(
        None, "adapters on top of pipeline, in the layout of PEFT or diffusers", min_length=1
    )
    revision: str | None = setting(
        None,
        "commit of the pipeline on the hub, 40 hexadecimal digits; by default the locked one",
        pattern=r"^[0-9a-f]{40}$",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = setting(
        None, "precision; by default the stored one of the pipeline's model, float32 on a CPU"
    )

    @property
    def given(self) -> dict[str, Any]:
        """The settings of sampling that the file gives, by name."""
        names = [name for name in type(self).model_fields if name not in _NAMES]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}

    @model_validator(mode="after")
    def _is_one_model(self) -> AskedModel:
        named = {name: getattr(self, name) for name in ("run", "sweep", "pipeline")}
        there = [name for name, value in named.items() if value is not None]
        if len(there) != 1:
            found = " and ".join(there) or "none of them"
            raise ValueError(f"expected one of run, sweep and pipeline, and it has {found}")
        if self.pipeline is None:
            for name in ("lora", "revision"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"{name} goes with pipeline, and this model is a {there[0]}: leave it out"
                    )
        elif self.weights != "evaluated":
            raise ValueError(
                f'weights = "{self.weights}" goes with run or sweep: a pipeline has one set'
            )
        return self


_NAMES = ("run", "sweep", "pipeline", "weights", "lora", "revision")


class ImageModel(AskedModel):
    """A model of pictures. What it does not set is the run's, or the family's."""

    steps: int | None = setting(None, "sampling steps", ge=1, le=REPEATS)
    guidance: float | None = setting(None, "scale of guidance", ge=0, le=NUMBER)
    size: int | None = setting(None, "side of the square picture, in pixels", ge=1, le=SIDE)
    max_sequence_length: int | None = setting(
        None, "of a pipeline: tokens of a prompt for T5 or Gemma", ge=1, le=TOKENS
    )
    without: list[str] | None = setting(
        None, "of a pipeline: components left out, e.g. text_encoder_3 and tokenizer_3 of SD3"
    )

    @model_validator(mode="after")
    def _run_has_its_own(self) -> ImageModel:
        for name in ("dtype", "max_sequence_length", "without"):
            if self.pipeline is None and getattr(self, name) is not None:
                raise ValueError(f"{name} goes with pipeline: a run has its own, from its config")
        return self


class TextModel(AskedModel):
    """A language model. All models of a file share the distribution of tokens, in [sampling]."""

    dtype: Literal["float32", "bfloat16"] | None = setting(
        None, "precision; by default the run's own, or float32 of a published model"
    )
    chat: dict[str, Any] = setting(
        {}, "settings of [domain.chat] in place of the run's or the domain's, e.g. thinking = false"
    )


class AskedConfig(Section):
    """An evaluation file, without its models."""

    EFFECT: ClassVar[Effect] = "none"
    MEDIUM: ClassVar[str]

    to: str | None = setting(
        None,
        "folder of the results; by default evaluations/NAME in $ADRPO_RUNS, by the file's name",
        min_length=1,
    )
    prompts: list[PromptSet] = setting(REQUIRED, "the prompt sets", min_length=1)
    sampling: SamplingConfig = setting(SamplingConfig(), "the samples of each prompt")
    scorers: list[Annotated[Any, OneOf(REWARDS)]] = setting(
        REQUIRED, "the judges, each as a [[rewards]] entry of a run", min_length=1
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _one_set(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping) else value

    @property
    def rows(self) -> Mapping[str, AskedModel]:
        """The judged models, by the names of their rows."""
        return {}

    def needs_from_hub(self) -> list[HubNeed]:
        """The models of the scorers and the datasets of the prompts."""
        scorers = [need for scorer in self.scorers for need in scorer.needs_from_hub()]
        sets = [need for one in self.prompts for need in needs_from_hub(one.file, "prompts.file")]
        return scorers + sets

    def resolved(self) -> dict[str, Any]:
        """All settings as JSON types, in declaration order."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _parts_agree(self) -> AskedConfig:
        faults = [
            *_faults_of_names("prompts", [one.label for one in self.prompts]),
            *_faults_of_names("scorers", [one.label for one in self.scorers]),
            *_faults_of_names("models", list(self.rows)),
            *_faults_of_scorers(self.scorers, self.MEDIUM),
        ]
        if not self.rows:
            faults.append("no model: give at least one [models.NAME] with run, sweep or pipeline")
        if faults:
            raise ValueError("\n".join(faults))
        return self


class ImagesConfig(AskedConfig):
    """An evaluation of pictures."""

    MEDIUM: ClassVar[str] = "pictures"

    benchmark: Literal["images"] = setting("images", "which benchmark")
    models: dict[str, ImageModel] = setting(REQUIRED, "the judged models, by the rows' names")

    @property
    def rows(self) -> Mapping[str, ImageModel]:
        return self.models


class TextConfig(AskedConfig):
    """An evaluation of completions."""

    MEDIUM: ClassVar[str] = "completions"

    benchmark: Literal["text"] = setting("text", "which benchmark")
    sampling: TextSampling = setting(TextSampling(), "the samples of each prompt")
    models: dict[str, TextModel] = setting(REQUIRED, "the judged models, by the rows' names")

    @property
    def rows(self) -> Mapping[str, TextModel]:
        return self.models


MOST = SAMPLES
"""The most samples of a row."""


def _faults_of_names(what: str, names: list[str]) -> Iterator[str]:
    """Names are parts of the names of files and folders."""
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{what}: {name!r} is there twice; set `name` of one of them"
        if not _WORD.fullmatch(name):
            yield (
                f"{what}: the name {name!r} names files, so that letters, digits and _ . + - are "
                "expected; choose another one"
            )


def _faults_of_scorers(scorers: list[RewardConfig], medium: str) -> Iterator[str]:
    for number, scorer in enumerate(scorers):
        judges = REWARDS[scorer.kind].judges
        if judges and medium not in judges:
            fitting = [kind for kind in REWARDS if medium in REWARDS[kind].judges]
            yield (
                f"scorers.{number}.kind = {scorer.kind!r} judges {' and '.join(judges)}, and this "
                f"evaluation makes {medium}: take one of {', '.join(fitting)}, or a function of "
                "your own"
            )
