"""How much an evaluation of pictures or completions makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adrpo_scale.core.errors import together
from adrpo_scale.data.prompt_files import load_prompts
from adrpo_scale.evaluation.asked import AskedConfig
from adrpo_scale.evaluation.rows import Row
from adrpo_scale.evaluation.samples import NamedSet, evenly

SIDE = 1024  # pixels of a picture of a pipeline whose size nobody states
STEPS, GUIDANCE = 28, 4.5  # of a pipeline that nobody states
TOKENS = 512  # of a completion whose longest nobody states
_COLOURS = 3
_TOKEN = 6  # bytes of a token as text
_LINES = 600  # bytes of a sample's lines: in the manifest, and of each score


def sets_of(config: AskedConfig, limit: int | None = None) -> tuple[NamedSet, ...]:
    """The prompt sets, read; limit: prompts of each, spread evenly. Raises PromptError, which lists
    all faults."""
    calls = [
        lambda one=one: load_prompts(one.file, one.format, one.reading) for one in config.prompts
    ]
    return tuple(
        NamedSet(one.label, tuple(evenly(prompts, limit)))
        for one, prompts in zip(config.prompts, together(*calls), strict=True)
    )


def samples_of_row(config: AskedConfig, prompts: int) -> int:
    """Samples of each row. prompts: of all sets."""
    return prompts * config.sampling.per_prompt * len(config.sampling.seeds)


def side_of(row: Row) -> int:
    """Pixels of a side of a row's pictures: as the file states it, the run, or SIDE."""
    stated = getattr(row.model, "size", None)
    return int(stated or _of_run(row, "domain", "height") or SIDE)


def steps_of(row: Row) -> int:
    """Sampling steps of a row's pictures."""
    stated = getattr(row.model, "steps", None)
    return int(stated or _of_run(row, "domain", "evaluation", "steps") or STEPS)


def guidance_of(row: Row) -> float:
    """The scale of guidance of a row's pictures."""
    stated = getattr(row.model, "guidance", None)
    of_run = _of_run(row, "domain", "evaluation", "guidance")
    found = of_run if stated is None else stated
    return float(GUIDANCE if found is None else found)


def tokens_of(row: Row) -> int:
    """Tokens of a row's longest completion."""
    stated = getattr(row.model, "max_new_tokens", None)
    return int(stated or _of_run(row, "domain", "evaluation", "max_new_tokens") or TOKENS)


def bytes_of_sample(config: AskedConfig, row: Row) -> int:
    """At most so many bytes of a sample, with its lines: noise does not compress."""
    lines = _LINES * (1 + len(config.scorers))
    if config.MEDIUM == "pictures":
        return _COLOURS * side_of(row) ** 2 + lines
    return _TOKEN * tokens_of(row) + lines


def bytes_of(config: AskedConfig, rows: Sequence[Row], prompts: int) -> int:
    """At most so many bytes of all results."""
    count = samples_of_row(config, prompts)
    return sum(count * bytes_of_sample(config, row) for row in rows)


def files_of(config: AskedConfig, rows: Sequence[Row], prompts: int) -> int:
    """Files of all results."""
    few = 8 + 2 * len(config.scorers)
    each = samples_of_row(config, prompts) if config.MEDIUM == "pictures" else 1
    return len(rows) * (each + few)


def _of_run(row: Row, *path: str) -> Any:
    found: Any = row.config
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found
