"""The page of the paper's numbers, made from configs/paper, its marks, and the recorded plans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from docs.generate import table
from docs.marks import marked
from docs.paper_recipes import NEVER, PAPER, RECIPES, ROOT, Cost, Recipe, cost_of

HEAD = """# The paper's numbers

Which files of `configs/paper` stand for which table and figure of
[arXiv 2510.18053](https://arxiv.org/abs/2510.18053), with which commands, at what cost, and what
the paper does not state. **None of its numbers was reproduced here**: "never run" means that no run
of that recipe was begun. The same recipes over the demos run on one machine in minutes.

GPU-hours are those of `adrpo-scale sweep FILE --dry-run`; nothing was measured. They are
of the training alone, evaluations during it included: judging afterwards is not counted.
[Plans](../results/plans.md) says what a plan assumes.
"""

UNKNOWN = """
Not among the recipes, because what they show is not known to us: tables 4 and 5, and which of the
figures 1 to 9 is which. Of the figures we know what the paper plots: reward, ClipDiversity and W2
divergence of pictures; reward, entropy and KL of texts. What a [sweep](../guide/sweeps.md) or an
[evaluation](../guide/evaluate.md) writes is enough to draw others of them.
"""

PRINTED = """## What the paper prints

**Not comparable** with numbers made here, unless resolution, steps, guidance, precision, prompts,
pictures per prompt and the scorers' weights are the same; the paper states few of them. Its
PickScores are 1 to 1.5 below what others publish for the same models. Compare differences to the
base.
"""


def page() -> str:
    costs = {one.sweep: cost_of(one.sweep) for one in RECIPES}
    rows = [_row(one, costs[one.sweep]) for one in RECIPES]
    parts = [
        HEAD,
        table(["number", "shows", "runs", "judged by", "GPU-hours", "here"], rows),
        UNKNOWN,
        *[_section(one, costs[one.sweep]) for one in RECIPES],
        "## What the paper does not state\n\nWhat the recipes do in its place.\n",
        table(["not stated, or not known to us", "here"], PAPER["not_stated"]),
        PRINTED,
        *[f"{table(one['head'], one['rows'])}\n{one['about']}\n" for one in PAPER["printed"]],
    ]
    return "\n".join(parts)


def _row(recipe: Recipe, cost: Cost | None) -> list[str]:
    judged = f"`{recipe.evaluation}`" if recipe.evaluation else _judge(recipe)
    anchor = "".join(c for c in recipe.title.lower() if c.isalnum() or c in " -").replace(" ", "-")
    return [
        f"[{recipe.title}](#{anchor})",
        recipe.shows,
        f"`{recipe.sweep}`",
        judged,
        _hours(recipe, cost),
        recipe.state,
    ]


def _judge(recipe: Recipe) -> str:
    mmau = "configs/omni/mmau.toml"
    return f"`{mmau}`" if any(mmau in line for line in recipe.after) else "the runs themselves"


def _hours(recipe: Recipe, cost: Cost | None) -> str:
    if cost is None:
        return "minutes on a CPU" if not recipe.nodes else "not planned"
    stale = ", planned with other settings" if cost.is_stale else ""
    return f"{cost.gpu_hours:,.0f} for {cost.runs} runs{stale}"


def _section(recipe: Recipe, cost: Cost | None) -> str:
    commands = "\n".join(recipe.commands)
    told = [f"## {recipe.title}\n", f"{recipe.shows[0].upper()}{recipe.shows[1:]}.", recipe.notes]
    if recipe.nodes:
        on = f", each on {cost.machine}" if cost else ""
        told.append(f"GPU-hours: {_hours(recipe, cost)}{on}.")
    told.append(_state(recipe))
    text = "\n".join(part for part in told if part)
    return f"{text}\n\n```sh\n{commands}\n```\n\n{_files(recipe)}\n\n{_marks(recipe.files)}"


def _state(recipe: Recipe) -> str:
    return f"Here: {recipe.state}." if recipe.state != NEVER else "Here: **never run**."


def _files(recipe: Recipe) -> str:
    return f"Settings: {', '.join(f'`{file}`' for file in recipe.files)}."


def _marks(files: Sequence[str]) -> str:
    """The values that the paper states or implies, of all files of a recipe, each once."""
    rows = dict.fromkeys(_rows_of(files))
    return table(["setting", "from the paper"], rows) if rows else ""


def _rows_of(files: Iterable[str]) -> Iterable[tuple[str, str]]:
    for file in files:
        for setting, mark in marked(ROOT / file).items():
            if not mark.startswith("released"):
                yield f"`{_in_section(setting)}`", mark


def _in_section(setting: str) -> str:
    """`[[rewards]] kind = "clip"` of `rewards.0.kind = "clip"`."""
    key, _, value = setting.partition(" = ")
    section, _, name = key.partition(".") if key.startswith("grid.") else key.rpartition(".")
    if not section:
        return setting
    plain = re.sub(r"\.\d+", "", section)
    return f"{f'[[{plain}]]' if plain != section else f'[{plain}]'} {name} = {value}"


PAGES = {"index.md": page}
