"""The samples of a page: method × prompt grids of the same noise, and paired completions.

Every row of the table that kept samples is a column here, by its first training seed that did. A
page has room for some prompts of a large set: they are spread evenly over it, so that every
category of a set in order is met.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from adrpo_scale.evaluation.report.comparison import Line
from adrpo_scale.evaluation.report.kept_samples import Asked, Kept, Noise, read_samples
from adrpo_scale.evaluation.report.thumbnails import Picture, Store

T = TypeVar("T")
PROMPTS = 48  # of each set, pictures
NOISES = 4  # of each prompt, pictures
TEXT_PROMPTS, TEXT_NOISES = 60, 2
CHARACTERS = 6000  # of a completion
_ORDER = ("train", "held_out")


@dataclass(frozen=True)
class Shown(Generic[T]):
    """A sample on the page. scores: name → text. note: that a completion was cut off, or ""."""

    what: T
    file: str
    scores: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class Card(Generic[T]):
    """A prompt. rows: of each noise one sample a model, None where it has none."""

    asked: Asked
    rows: Sequence[tuple[Noise, Sequence[Shown[T] | None]]]


@dataclass(frozen=True)
class Gallery(Generic[T]):
    """models: (label, folder) of the columns. total: prompts of all sets, of which the cards are
    some. noises: of a prompt, of which `NOISES` are shown."""

    models: Sequence[tuple[str, str]]
    cards: Sequence[Card[T]]
    total: int
    noises: int

    @property
    def categories(self) -> list[str]:
        """The groups of prompts that are shown."""
        found = dict.fromkeys(card.asked.group for card in self.cards)
        return [name for name in found if name]


Models = Sequence[tuple[str, str, Sequence[Kept]]]


def models_with_samples(lines: Sequence[Line]) -> Models:
    """(label, folder, samples) of each row that kept samples; the models that runs began from have
    no folder of their own."""
    found = []
    for line in lines:
        own = [run for run in line.runs if line.is_trained or run.is_benchmark]
        kept = ((run.path, read_samples(run.folder)) for run in own)
        first = next(((folder, samples) for folder, samples in kept if samples), None)
        if first is not None:
            found.append((line.label, *first))
    return found


def pictures(models: Models, store: Store) -> Gallery[Picture]:
    """The grids. Full pictures are kept prompt by prompt, for all models alike, while there is
    room."""
    of_pictures = [
        (name, folder, [s for s in samples if s.file is not None])
        for name, folder, samples in models
    ]

    def shown(sample: Kept) -> Picture | None:
        return None if sample.file is None else store.add(sample.file)

    return _gallery(of_pictures, shown, PROMPTS, NOISES)


def completions(models: Models) -> Gallery[str]:
    """The texts, side by side. One that is too long is cut, and ends by saying so."""
    of_texts = [
        (name, folder, [s for s in samples if s.text is not None])
        for name, folder, samples in models
    ]

    def shown(sample: Kept) -> str | None:
        text = sample.text or ""
        more = len(text) - CHARACTERS
        return text if more <= 0 else f"{text[:CHARACTERS]}… ({more} more characters)"

    return _gallery(of_texts, shown, TEXT_PROMPTS, TEXT_NOISES)


def _gallery(
    models: Models, shown: Callable[[Kept], T | None], prompts: int, noises: int
) -> Gallery[T]:
    models = [model for model in models if model[2]]
    tables = [{(s.asked, s.noise): s for s in samples} for _, _, samples in models]
    asked = list(dict.fromkeys(key[0] for table in tables for key in table))
    of: dict[Asked, dict[Noise, None]] = {}
    for table in tables:
        for prompt, noise in table:
            of.setdefault(prompt, {})[noise] = None
    cards = [
        Card(
            prompt,
            [
                (noise, [_shown(table.get((prompt, noise)), shown) for table in tables])
                for noise in sorted(of[prompt])[:noises]
            ],
        )
        for prompt in _spread(asked, prompts)
    ]
    most = max((len(each) for each in of.values()), default=0)
    return Gallery([(name, folder) for name, folder, _ in models], cards, len(asked), most)


def _shown(sample: Kept | None, shown: Callable[[Kept], T | None]) -> Shown[T] | None:
    what = None if sample is None else shown(sample)
    if sample is None or what is None:
        return None
    scores = {name: f"{score:.4g}" for name, score in sample.scores.items()}
    length = "" if sample.length is None else f" after {sample.length} tokens"
    note = f"cut off{length}" if sample.finished is False else ""
    return Shown(what, "" if sample.file is None else _name(sample.file), scores, note)


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _spread(asked: Sequence[Asked], most: int) -> Iterable[Asked]:
    """Of each set up to `most` prompts, evenly spaced."""
    sets: dict[str, list[Asked]] = {}
    for prompt in asked:
        sets.setdefault(prompt.set, []).append(prompt)
    for each in sets.values():
        count = min(most, len(each))
        yield from (each[k * len(each) // count] for k in range(count))


# --- sheets that `train` drew ---------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """The samples of an evaluation of a run, as `train` drew them."""

    label: str
    run: str
    split: str
    iteration: int
    picture: Picture


SHEET = 300  # pixels of the longer side of its thumbnail


def sheets(lines: Sequence[Line], store: Store) -> list[Sheet]:
    """Of the first run of each trained row: before training, and after the last iteration that the
    table's numbers are of."""
    found = []
    for line in lines:
        run = line.runs[0]
        if not line.is_trained or run.is_benchmark:
            continue
        last = max((n for c in line.cells.values() for n in c.numbers[0].iterations), default=0)
        for split in _ORDER:
            for iteration in dict.fromkeys((0, last)):
                path = run.folder / "samples" / f"{split}-{iteration:06d}.png"
                picture = store.add(path, side=SHEET) if path.is_file() else None
                if picture is not None:
                    found.append(Sheet(line.label, run.folder.name, split, iteration, picture))
    return found
