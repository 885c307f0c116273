"""What of a prompt a picture of the image task shows, part by part: `kind = "function"` scorers.

Each is 1 or 0 for a picture, and 0 for all of its parts where a cell is unreadable. A picture that
is right in every part may still be wrong: only `task.check` puts colours and shapes together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from adrpo_scale.core.types import Prompt
from adrpo_scale.demo.image.task import Glyph, Spec, parse_image, parse_prompt


def readable(artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Whether each cell is empty or holds a glyph. artifacts: uint8 [20, 20, 3]."""
    return _scores(artifacts, prompts, lambda glyphs, spec: True)


def count(artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Whether there are as many glyphs as the prompt names. artifacts: uint8 [20, 20, 3]."""
    return _scores(
        artifacts, prompts, lambda glyphs, spec: len(glyphs) == sum(t.count for t in spec.things)
    )


def shapes(artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Whether each shape is there as often as the prompt says. artifacts: uint8 [20, 20, 3]."""
    return _scores(
        artifacts,
        prompts,
        lambda glyphs, spec: (
            _counted((t.shape, t.count) for t in spec.things) == Counter(g.shape for g in glyphs)
        ),
    )


def colors(artifacts: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[float]:
    """Whether each colour is there as often as the prompt says, and as many others as it leaves
    open. artifacts: uint8 [20, 20, 3]."""
    return _scores(artifacts, prompts, _colors_fit)


def _colors_fit(glyphs: Sequence[Glyph], spec: Spec) -> bool:
    named = _counted((t.color, t.count) for t in spec.things if t.color is not None)
    drawn = Counter(glyph.color for glyph in glyphs)
    return named <= drawn and drawn.total() == sum(thing.count for thing in spec.things)


def _counted(things: Iterable[tuple[str, int]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, number in things:
        found[name] += number
    return found


def _scores(
    artifacts: Sequence[np.ndarray],
    prompts: Sequence[Prompt],
    fits: Callable[[Sequence[Glyph], Spec], bool],
) -> list[float]:
    found = []
    for image, prompt in zip(artifacts, prompts, strict=True):
        glyphs = parse_image(image)
        found.append(float(glyphs is not None and fits(glyphs, parse_prompt(prompt.text))))
    return found
