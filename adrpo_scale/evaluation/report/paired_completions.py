"""The completions of two rows of an evaluation side by side: one prompt, one noise, two models.

Noise is a function of sampling seed, prompt and number of the sample, so the two completions of a
pair differ by their models alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import RunFolderError
from adrpo_scale.core.json_files import read_lines
from adrpo_scale.evaluation.row_folder import COMPLETIONS, MANIFEST, SCORES
from adrpo_scale.evaluation.row_numbers import read_scores


@dataclass(frozen=True)
class Written:
    """A completion. number: of the sample in its row. length: in tokens; finished: False where it
    was cut off; None in files that do not say it. scores: by scorer, those that there are; None:
    the scorer gave none."""

    number: int
    text: str
    length: int | None
    finished: bool | None
    scores: Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """Two completions of one prompt. set: of the prompt; category: its own, if it has one; seed,
    sample: of the noise that both have."""

    set: str
    prompt: str
    category: str | None
    seed: int
    sample: int
    one: Written
    other: Written

    def gap(self, scorer: str) -> float | None:
        """The score of `one` less that of `other`; None where one of them has none."""
        first, second = self.one.scores.get(scorer), self.other.scores.get(scorer)
        return None if first is None or second is None else first - second


def paired_completions(
    one: Path, other: Path, *, prompt: str | None = None, set: str | None = None
) -> list[Pair]:
    """The pairs of two row folders, in the order of the first; a sample that one of them lacks is
    in no pair. prompt, set: of that prompt or prompt set alone. Raises RunFolderError for a folder
    without completions."""
    first, second = _by_noise(one), _by_noise(other)
    found = []
    for key, (line, written) in first.items():
        if key in second and prompt in (None, line["prompt"]) and set in (None, key[0]):
            category = line.get("category")
            named = category if isinstance(category, str) else None
            name, text, _, seed, sample = key
            found.append(Pair(name, text, named, seed, sample, written, second[key][1]))
    return found


def _by_noise(row: Path) -> dict[Any, tuple[dict[str, Any], Written]]:
    """(line of the manifest, completion) by what names the prompt and its noise."""
    texts = {line.get("id"): line for line in read_lines(row / COMPLETIONS)}
    if not texts:
        raise RunFolderError(
            f'{row} has no completions: name a row of an evaluation with benchmark = "text", as '
            "EVALUATION/rows/ROW"
        )
    scorers = sorted(path.stem for path in (row / SCORES).glob("*.jsonl"))
    scores = {scorer: read_scores(row, scorer) for scorer in scorers}
    found = {}
    for line in read_lines(row / MANIFEST):
        number = line.get("id")
        text = texts.get(number, {}).get("text")
        if not isinstance(number, int) or not isinstance(text, str):
            continue
        own = {name: values[number] for name, values in scores.items() if number in values}
        length, finished = (texts[number].get(name) for name in ("length", "finished"))
        key = tuple(line.get(name) for name in ("set", "prompt", "prompt_id", "seed", "sample"))
        found[key] = line, Written(number, text, length, finished, own)
    return found
