"""The prompts of an iteration: the section [prompts], the split and the stream.

Contract: the prompts of an iteration are a pure function of (prompts, seed, cursor), where the
cursor is the number of prompts consumed since the run began. So the stream is the same on every
rank without communication, does not depend on the number of ranks, and resumes from one integer: a
restart neither skips nor repeats a prompt.

Epoch e is its own permutation of all prompts. An iteration may cross from one epoch into the next:
nothing is skipped there and nothing is repeated within an epoch, so the same prompt may stand twice
in such an iteration (last of one epoch, first of the next), and must if P is larger than the number
of prompts. Groups of an iteration are therefore told apart by their place in it, not by prompt id.

Files and their formats are read by `prompt_files`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from pydantic import field_validator, model_validator

from adrpo_scale.core.bounds import SAMPLES
from adrpo_scale.core.errors import ConfigError, PromptError, together
from adrpo_scale.core.seeding import Purpose, permutation
from adrpo_scale.core.settings import REQUIRED, Section, setting
from adrpo_scale.core.types import Prompt
from adrpo_scale.data.prompt_files import load_prompts, needs_from_hub
from adrpo_scale.data.rows import Form, Reading
from adrpo_scale.hub.needs import HubNeed

__all__ = ["PromptStream", "PromptsConfig", "build_prompts", "load_prompts", "split"]

Format = Literal[
    "auto",
    "txt",
    "geneval",
    "drawbench",
    "partiprompts",
    "imagereward",
    "avqa",
    "avqa_think",
    "jsonl",
    "parquet",
    "folder",
]


class PromptsConfig(Section):
    """The section [prompts]: which files, how many prompts an iteration, how many samples each."""

    train: str = setting(
        REQUIRED,
        "prompt file or dataset folder to train on; relative to the current folder, demo:... for a "
        "shipped one, or hub:OWNER/DATASET, with /FOLDER or /FILE and :SPLIT at its end",
        effect="content",
        min_length=1,
    )
    held_out: str | None = setting(
        None, "prompt file to evaluate on and never train on", effect="none", min_length=1
    )
    held_out_share: float = setting(
        0.0, "share of `train` to hold out instead of a file of its own", ge=0, lt=1
    )
    format: Format = setting(
        "auto", "format of both files; auto decides for each by its suffix and first row"
    )
    column: str | None = setting(
        None,
        "key of the prompt in both files, with dots for a key inside another; decided by the first "
        "row by default",
        before=None,
        min_length=1,
    )
    answer: str | None = setting(
        None,
        "key of the reference answer, which rewards find as `answer`; decided as column is",
        before=None,
        min_length=1,
    )
    answer_form: Form = setting(
        "auto",
        "where the answer stands in its text: text (all of it), hashes (after ####), boxed (in "
        "\\boxed{}); auto decides by the first row",
        before="auto",
    )
    per_iteration: int = setting(6, "P, prompts of one iteration", ge=1, le=SAMPLES)
    group_size: int = setting(12, "G, samples of each prompt", ge=2, le=SAMPLES)
    shuffle: bool = setting(True, "a new seeded order in every epoch; false: the file's order")
    split_seed: int = setting(
        0, "seed of the held-out share, apart from the run's seed", ge=0, lt=2**63
    )

    @field_validator("group_size", mode="before")
    @classmethod
    def _group_has_two(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value < 2:
            raise ValueError(
                f"group_size is {value}, but an advantage compares the samples of one prompt with "
                "each other, so a group needs at least 2; set group_size to 2 or more"
            )
        return value

    def needs_from_hub(self) -> list[HubNeed]:
        """The datasets of the hub that `build_prompts` reads."""
        held_out = self.held_out or ""
        return [
            *needs_from_hub(self.train, "prompts.train"),
            *needs_from_hub(held_out, "prompts.held_out"),
        ]

    @property
    def reading(self) -> Reading:
        """How rows are read."""
        return Reading(self.column, self.answer, self.answer_form)

    @model_validator(mode="after")
    def _one_held_out(self) -> PromptsConfig:
        if self.held_out is not None and self.held_out_share > 0:
            raise ValueError(
                f"held_out = {self.held_out!r} and held_out_share = {self.held_out_share} both say "
                "what to hold out; keep the file or the share, and delete the other"
            )
        if self.held_out == self.train:
            raise ValueError(
                f"held_out and train are the same file, {self.train!r}; name another one, or set "
                "held_out_share to hold out a part of it"
            )
        return self


def build_prompts(config: PromptsConfig) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held_out) of `config`; held_out is [] if it names neither file nor share.

    Ids count through both lists, `train` first: those of a held-out file follow those of `train`,
    so that an id names one prompt of the run. Raises PromptError, or ConfigError for an unknown
    `demo:` name.
    """
    files = [config.train, *([config.held_out] if config.held_out is not None else [])]
    calls = [partial(load_prompts, file, config.format, config.reading) for file in files]
    prompts, *further = together(*calls)
    for held_out in further:
        return prompts, [replace(prompt, id=len(prompts) + prompt.id) for prompt in held_out]
    return split(prompts, config.held_out_share, config.split_seed)


def split(prompts: Sequence[Prompt], share: float, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held_out): a seeded `share` of the prompts held out, the rest to train on.

    Every prompt is in exactly one part, in its old order and with its id. The share is of the
    different texts, rounded; with share > 0 each part has at least one, share 0 holds out none.
    Raises ConfigError if share is not in [0, 1), PromptError for fewer than two different texts.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"held_out_share is {share}, expected a number in [0, 1)")
    if share == 0:
        return list(prompts), []
    # Texts, not rows: a prompt that a file lists twice would otherwise be trained on and held out.
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    if len(texts) < 2:
        raise PromptError(
            f"held_out_share is {share}, but there is nothing to split: {len(prompts)} prompts "
            f"with {len(texts)} different texts, expected at least 2; add prompts or set it to 0"
        )
    count = min(max(round(share * len(texts)), 1), len(texts) - 1)
    order = permutation(len(texts), seed, Purpose.SPLIT).tolist()
    chosen = {texts[place] for place in order[:count]}
    train = [prompt for prompt in prompts if prompt.text not in chosen]
    held_out = [prompt for prompt in prompts if prompt.text in chosen]
    return train, held_out


class PromptStream:
    """The prompts of every iteration, without state: `at(cursor)`, then cursor += per_iteration."""

    def __init__(
        self, prompts: Sequence[Prompt], per_iteration: int, seed: int, shuffle: bool = True
    ) -> None:
        """prompts: n of them, at least one. per_iteration: P, may be larger than n.

        seed: of the run; decides the order of every epoch. shuffle: False keeps the given order in
        every epoch. Raises PromptError without prompts, ConfigError if per_iteration < 1.
        """
        if not prompts:
            raise PromptError("got no prompts, expected at least one; look at [prompts] train")
        if per_iteration < 1:
            raise ConfigError(f"per_iteration is {per_iteration}, expected 1 or more")
        self.prompts = tuple(prompts)
        self.per_iteration = per_iteration
        self.seed = seed
        self.shuffle = shuffle

    def at(self, cursor: int) -> list[Prompt]:
        """The P prompts of the iteration that begins when `cursor` prompts have been consumed.

        Raises ValueError if cursor < 0. The same cursor always gives the same prompts.
        """
        if cursor < 0:
            raise ValueError(f"cursor is {cursor}, expected 0 or more")
        n = len(self.prompts)
        chosen: list[Prompt] = []
        while len(chosen) < self.per_iteration:
            epoch, place = divmod(cursor + len(chosen), n)
            missing = self.per_iteration - len(chosen)
            order = self._order(epoch)
            chosen += [self.prompts[index] for index in order[place : place + missing]]
        return chosen

    def _order(self, epoch: int) -> list[int]:
        n = len(self.prompts)
        if not self.shuffle:
            return list(range(n))
        return permutation(n, self.seed, epoch, Purpose.PROMPT_ORDER).tolist()
