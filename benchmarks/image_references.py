"""Reference × regulariser on the dice demo, and remedies on the hacking demo.

    python -m benchmarks.image_references --to DIR [--at-once 2] [--part dice] [--cells ema ...]
    python -m benchmarks.image_references --to DIR --table --draw DIR

The first line trains what DIR has no record of, five seeds a cell, one process with one thread
each; the second prints the tables of docs/results/image-references.md and draws the figures, from
DIR/joined.json alone. `image_cells` lists the cells.

How cells are compared: at the end of equal samples (mean of the last three evaluations), and at
equal distance from the base: every run's evaluations are read off, on straight lines between them,
where w2_sum of the same split first reaches a level. Differences are taken seed by seed; ± is half
of a 95 % t-interval over the seeds that reach the level.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.markdown import table
from benchmarks.cells import Cell, Job, Record, Shelf, carry_out, crossing, figure, interval
from benchmarks.image_cells import PARTS, SEEDS, Part

METRICS = ("checker", "reward", "pixel_diversity", "w2_sum")
COLUMNS = ("divergence", "beta_mean", "advantage_clip_fraction", "beta0")
LAST = 3  # evaluations that the end is a mean of
SPLIT = "held_out"

Read = Callable[[Record], float | None]


def points(record: Record, metric: str, split: str = SPLIT) -> list[float | None]:
    return [value for _, value in record["evaluations"][f"{split} {metric}"]]


def at_end(metric: str, split: str = SPLIT) -> Read:
    """Reads the mean of the last evaluations; None where the run stopped before its end."""

    def read(record: Record) -> float | None:
        values = [v for v in points(record, metric, split)[-LAST:] if v is not None]
        is_whole = record["outcome"] == "done" and len(values) == LAST
        return statistics.fmean(values) if is_whole else None

    return read


def at_level(metric: str, level: float, split: str = SPLIT) -> Read:
    """Reads the value where w2_sum first reaches the level."""
    return lambda record: crossing(
        points(record, "w2_sum", split), points(record, metric, split), level
    )


def said(values: Sequence[float], of: int, plus: bool = False) -> str:
    """Mean ± half of the interval, and of how many seeds where not of all."""
    if not values:
        return "–"
    mean, half = interval(values)
    largest = max(abs(mean), half)
    digits = 3 if largest < 1 else 2 if largest < 10 else 1
    text = f"{mean:{'+' if plus else ''}.{digits}f}"
    text += f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return text if len(values) == of else f"{text} ({len(values)})"


def of_cell(records: dict[int, Record], read: Read) -> str:
    values = [value for record in records.values() if (value := read(record)) is not None]
    return said(values, len(records))


def differences(one: dict[int, Record], other: dict[int, Record], read: Read) -> list[float]:
    """By seed, of the seeds that both have a number of."""
    found = []
    for seed in sorted(one.keys() & other.keys()):
        pair = read(one[seed]), read(other[seed])
        if pair[0] is not None and pair[1] is not None:
            found.append(pair[0] - pair[1])
    return found


def ends(shelf: Shelf, part: Part, cells: Sequence[Cell]) -> str:
    """The table of the cells at the end of equal samples."""
    columns = [(metric, split) for metric in METRICS for split in ("held_out", "train")]
    head = [f"{metric}, {split.replace('_', '-')}" for metric, split in columns]
    lines = [["cell", "runs", *head, "CPU-s"]]
    known = {cell.name: shelf.of(cell, SEEDS) for cell in cells}
    first = next((r for records in known.values() for r in records.values()), None)
    if first is not None:
        values = [points(first, *column)[0] for column in columns]
        texts = ["" if value is None else f"{value:.3f}" for value in values]
        lines.append([f"base ({part.name})", "", *texts, ""])
    for name, records in known.items():
        if records:
            whole = sum(record["outcome"] == "done" for record in records.values())
            runs = f"{whole}" if whole == len(records) else f"{whole} of {len(records)}"
            texts = [of_cell(records, at_end(*column)) for column in columns]
            spent = statistics.fmean(record["cpu_seconds"] for record in records.values())
            lines.append([name, runs, *texts, f"{spent:.0f}"])
    return table(lines)


def levels(shelf: Shelf, part: Part, cells: Sequence[Cell], metric: str) -> str:
    """The table of one metric on held-out prompts at equal w2_sum."""
    lines = [["cell", *(f"w2_sum = {level:g}" for level in part.levels)]]
    for cell in cells:
        records = shelf.of(cell, SEEDS)
        if records:
            lines.append(
                [cell.name, *(of_cell(records, at_level(metric, level)) for level in part.levels)]
            )
    return table(lines)


def contrasts(shelf: Shelf, part: Part, metric: str) -> str:
    """The table of the listed pairs, seed by seed: one cell less the other."""
    reads = [at_end(metric), *(at_level(metric, level) for level in part.levels)]
    lines = [["cell", "less", "end", *(f"w2_sum = {level:g}" for level in part.levels)]]
    by_name = {cell.name: cell for cell in part.cells}
    for pair in part.pairs:
        one, other = (shelf.of(by_name[name], SEEDS) for name in pair)
        both = len(one.keys() & other.keys())
        if both:
            texts = [said(differences(one, other, read), both, plus=True) for read in reads]
            lines.append([*pair, *texts])
    return table(lines)


def tables(shelf: Shelf, part: Part, cells: Sequence[Cell]) -> str:
    blocks = [f"### {part.name}: at the end of equal samples", ends(shelf, part, cells)]
    for metric in METRICS[:3]:
        blocks += [f"### {part.name}: {metric}, held-out, at equal w2_sum"]
        blocks += [levels(shelf, part, cells, metric)]
        blocks += [f"### {part.name}: {metric}, held-out, differences by seed"]
        blocks += [contrasts(shelf, part, metric)]
    blocks += [f"### {part.name}: runs that stopped", outcomes(shelf, cells)]
    return "\n\n".join(blocks)


def outcomes(shelf: Shelf, cells: Sequence[Cell]) -> str:
    """What runs did not reach their end, one a line."""
    records = [record for cell in cells for record in shelf.of(cell, SEEDS).values()]
    stopped = [f"* {r['name']}: {r['outcome']}" for r in records if r["outcome"] != "done"]
    return "\n".join(stopped) if stopped else "Every run reached its end."


def draw(shelf: Shelf, part: Part, cells: Sequence[Cell], to: Path) -> None:
    """Checker, reward and diversity against w2_sum on held-out prompts: a row a panel, a line a
    cell, through the means over seeds at each evaluation; bars are t-intervals at the last one."""
    labels = ("checker (strict)", "reward (CLIP)", "pixel diversity")
    known = {cell.name: list(shelf.of(cell, SEEDS).values()) for cell in cells}
    with figure(to, (len(part.panels), 3), (13, 3.6 * len(part.panels))) as axes_RC:
        for (title, prefixes), axes_C in zip(part.panels, axes_RC, strict=True):
            names = [n for n in known if n.startswith(prefixes) and known[n]]
            for k, name in enumerate(names):
                for axis, metric in zip(axes_C, METRICS, strict=False):
                    trace(axis, known[name], metric, f"C{k % 10}", name)
            for axis, label in zip(axes_C, labels, strict=True):
                axis.set(xlabel="w2_sum to the base", ylabel=label, title=title)
                axis.grid(alpha=0.3)
            if names:  # where nothing lies: diversity falls
                axes_C[2].legend(fontsize=6, loc="upper right")


def trace(axis: Any, records: Sequence[Record], metric: str, colour: str, name: str) -> None:
    """One cell's line: means over the runs that have the evaluation."""
    abscissa, ordinate = ([points(r, m) for r in records] for m in ("w2_sum", metric))
    count = min(map(len, ordinate))
    means = [
        [statistics.fmean(v for run in runs if (v := run[k]) is not None) for k in range(count)]
        for runs in (abscissa, ordinate)
    ]
    axis.plot(*means, ".-", color=colour, label=name, alpha=0.8, markersize=3, linewidth=1)
    last = [run[count - 1] for run in ordinate]
    _, half = interval([value for value in last if value is not None])
    axis.errorbar(means[0][-1], means[1][-1], half, color=colour, alpha=0.6, capsize=2)


def chosen(part: Part, words: Sequence[str]) -> list[Cell]:
    """The cells whose name begins with one of the words; all without words."""
    return [cell for cell in part.cells if not words or cell.name.startswith(tuple(words))]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("runs/image-references"))
    parser.add_argument("--part", choices=PARTS, action="append", help="repeatable; unset: all")
    parser.add_argument("--cells", nargs="*", default=[], help="beginnings of names of cells")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--at-once", type=int, default=1, help="processes, one thread each")
    parser.add_argument("--list", action="store_true", help="print the cells and end")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    parser.add_argument("--draw", type=Path, help="a folder for one figure a part")
    arguments = parser.parse_args()
    parts = [PARTS[name] for name in arguments.part or PARTS]
    cells = {part.name: chosen(part, arguments.cells) for part in parts}
    if arguments.list:
        for part in parts:
            for cell in cells[part.name]:
                print(part.name, cell.name, " ".join(cell.settings))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, too
    failed = []
    if not (arguments.table or arguments.draw):
        for part in parts:
            jobs = [
                Job(cell, seed, METRICS, COLUMNS)
                for seed in arguments.seeds  # outermost: what is interrupted has whole seeds
                for cell in cells[part.name]
            ]
            failed += carry_out(jobs, arguments.to / part.name, arguments.at_once)
    for part in parts:
        shelf = Shelf.read(arguments.to / part.name)
        if arguments.table:
            print(tables(shelf, part, cells[part.name]), end="\n\n")
        if arguments.draw:
            draw(
                shelf, part, cells[part.name], arguments.draw / f"image-references-{part.name}.png"
            )
    sys.exit(f"failed: {' '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
