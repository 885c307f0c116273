"""The reproducibility text of a report: what was run on what, what it took, what else was tried,
and what is not recorded. From the folders alone; the same folders give the same text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adrpo_scale.core.errors import ConfigError
from adrpo_scale.core.files import replace_file
from adrpo_scale.core.json_files import number_in, read_object, section_of
from adrpo_scale.core.paths import make_output_folder
from adrpo_scale.core.printable import shown as shown_value
from adrpo_scale.evaluation.report.comparison import Line, columns, table_lines
from adrpo_scale.evaluation.report.costs import Cost, cost_of
from adrpo_scale.evaluation.report.document import (
    Block,
    Grid,
    Heading,
    Items,
    Paragraph,
    latex,
    markdown,
)
from adrpo_scale.evaluation.report.evaluated import Evaluated
from adrpo_scale.evaluation.report.given import Given
from adrpo_scale.evaluation.report.origins import run_folder
from adrpo_scale.evaluation.report.statement_models import UNKNOWN, models_grid
from adrpo_scale.evaluation.report.statement_settings import settings_blocks
from adrpo_scale.evaluation.report.text import notes
from adrpo_scale.evaluation.row_folder import IDENTITY, TIMING
from adrpo_scale.run.prompt_sets import FILE as PROMPT_SETS

_SHOWN = 60  # runs that are not shown, in a table
_NEVER = (
    "energy; the processes of evaluations; other packages than those of the versions above; runs "
    "in other folders; runs whose folders were removed"
)


def write_statement(to: Path, given: Given) -> None:
    """Writes the text in the form that the file's name ends in. Raises ConfigError for another."""
    render = {".md": markdown, ".tex": latex}.get(to.suffix)
    if render is None:
        raise ConfigError(f"--statement {shown_value(str(to))}: expected FILE.md or FILE.tex")
    make_output_folder(to.parent)
    content = render(statement(given)).encode("utf-8", "backslashreplace")
    replace_file(to, content, durable=False)


def statement(given: Given) -> list[Block]:
    """The text, as blocks. given: with `tried`."""
    runs = [run for run in given.runs if run.rows]
    lines, shown = table_lines(runs), columns(runs)
    rows = {f"R{number}": line for number, line in enumerate(_asked(lines), 1)}
    models = models_grid(runs, given.locks)
    return [
        Heading("Reproducibility", 1),
        _rows(rows),
        Heading("Settings"),
        *settings_blocks(rows),
        Heading("Prompts and weights"),
        Items((*notes(lines, shown), *_trained_on(runs), *_evaluations(runs))),
        Heading("Hardware and software"),
        Items(tuple(_environments(runs)) or ("no start is recorded",)),
        Heading("Computation"),
        *_computation(rows, given.tried),
        Heading("Models and datasets"),
        models if len(models.lines) > 1 else Paragraph("No model or dataset is recorded."),
        Heading("Runs that were tried and are not shown"),
        *_tried(given.tried, given.line),
        Heading("What is not recorded"),
        Items(tuple(_missing(runs, models))),
    ]


# ---- rows ----------------------------------------------------------------------------------------


def _asked(lines: Sequence[Line]) -> list[Line]:
    """All but the models that runs began from, which have the settings of these."""
    return [line for line in lines if line.is_trained or line.runs[0].is_benchmark]


def _rows(rows: Mapping[str, Line]) -> Grid:
    """The rows of the report's tables by short names, which the tables below have."""
    lines = [
        (
            name,
            line.label,
            ", ".join(dict.fromkeys(run.folder.name for run in line.runs)),
            ", ".join(run.seed_text for run in line.runs)
            if line.is_trained
            else "nobody trained it",
            ", ".join(sorted({_told(run.settings.get("evaluation.seed")) for run in line.runs})),
        )
        for name, line in rows.items()
    ]
    head = ("", "row", "runs", "training seeds", "seed of evaluations")
    return Grid((head, *lines), "Rows of the tables.")


def _evaluations(runs: Sequence[Evaluated]) -> Iterable[str]:
    """What the evaluations asked, whose rows these are."""
    tops = dict.fromkeys(run.folder.resolve().parent.parent for run in runs if run.is_benchmark)
    for top in tops:
        document = read_object(top / IDENTITY) or {}
        config = section_of(document, "config")
        sampling = section_of(config, "sampling")
        if not document:
            continue
        facts = [f"{name} = {value}" for name, value in sampling.items() if value is not None]
        scorers = section_of(document, "scorers")
        starts = (read_object(top / TIMING) or {}).get("starts")
        seconds = [number_in(one.get("seconds"), float) for one in _objects(starts)]
        parts = [
            f"sampling: {', '.join(facts) or UNKNOWN}",
            f"scorers: {', '.join(f'{n} {_json(v)}' for n, v in scorers.items()) or UNKNOWN}",
            f"{sum(s or 0.0 for s in seconds):g} s in {_count(len(seconds), 'start')}",
        ]
        yield f"evaluation {top.name}: {'; '.join(parts)}"


def _objects(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _trained_on(runs: Sequence[Evaluated]) -> Iterable[str]:
    """The prompts that were trained on, by their set's hash."""
    found: dict[str, dict[str, None]] = {}
    for folder in _folders(runs):
        train = section_of(read_object(folder / PROMPT_SETS) or {}, "train")
        if train:
            text = f"{train.get('prompts')} prompts, set {train.get('hash')}"
            found.setdefault(text, {})[folder.name] = None
    return [f"trained on {text} ({', '.join(names)})" for text, names in found.items()]


def _folders(runs: Sequence[Evaluated]) -> list[Path]:
    """The folder of every run, once."""
    found = (run_folder(run) for run in runs)
    return list(dict.fromkeys(folder for folder in found if folder is not None))


# ---- starts --------------------------------------------------------------------------------------


def _records(folder: Path) -> list[dict[str, Any]]:
    paths = [p for p in (folder / "lives").glob("*.json") if p.stem.isdecimal()]
    found = [read_object(path) for path in sorted(paths, key=lambda path: int(path.stem))]
    return [record for record in found if record is not None]


def _environments(runs: Sequence[Evaluated]) -> list[str]:
    """A line for each kind of hardware, code and versions, with the number of starts on it."""
    records = [record for folder in _folders(runs) for record in _records(folder)]
    kinds: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "hardware": _hardware,
        "code": lambda record: f"commit {record.get('commit') or UNKNOWN}",
        "versions": _versions,
    }
    lines = []
    for name, text_of in kinds.items():
        counted = Counter(map(text_of, records))
        lines += [f"{name}: {text} ({_count(n, 'start')})" for text, n in counted.items()]
    changed = [line for record in records for line in _texts(record.get("changed_settings"))]
    lines += [f"changed between starts: {line}" for line in dict.fromkeys(changed)]
    differ = [line for record in records for line in _texts(record.get("disagreements"))]
    return lines + [f"ranks differed: {line}" for line in dict.fromkeys(differ)]


def _texts(value: Any) -> list[str]:
    return [str(text) for text in value] if isinstance(value, list) else []


def _hardware(record: Mapping[str, Any]) -> str:
    gpus = sorted(section_of(dict(record), "gpus").items())
    what = ", ".join(f"{count} × {name}" for name, count in gpus) or "no GPU"
    world, hosts = (record.get(name, UNKNOWN) for name in ("world_size", "hosts"))
    driver = record.get("driver")
    cuda = f", CUDA {record.get('cuda')}, driver {driver or UNKNOWN}" if gpus else ""
    return f"{what}; processes: {world}, machines: {hosts}{cuda}"


def _versions(record: Mapping[str, Any]) -> str:
    versions = section_of(dict(record), "versions")
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or UNKNOWN


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "s")


# ---- computation ---------------------------------------------------------------------------------


def _computation(rows: Mapping[str, Line], tried: Sequence[Mapping[str, Any]]) -> list[Block]:
    head = (
        "row",
        "starts",
        "in the result",
        "done again",
        "starts that left nothing",
        "rest",
        "all",
    )
    each = {
        name: sum(map(cost_of, _folders([*line.runs, *line.repeated])), Cost())
        for name, line in rows.items()
        if line.is_trained
    }
    whole = sum(map(cost_of, _folders(_all_runs(rows))), Cost())
    lines = [_cost_row(name, cost) for name, cost in each.items()]
    lines.append(_cost_row("all, each run once", whole))
    hours = "GPU-hours" if whole.on_gpus == whole.starts else "hours of processes without a GPU"
    if 0 < whole.on_gpus < whole.starts:
        hours = f"hours of processes, of which {whole.on_gpus} of {whole.starts} starts had GPUs"
    beside = sum((number_in(one.get("hours"), float) or 0.0) for one in tried)
    said = [
        "in the result: iterations that its metrics have; done again: iterations after the last "
        "checkpoint before an accident, "
        f"{_count(whole.repeated_iterations, 'iteration')} in all; rest: loading, evaluating "
        "before training, saving, waiting",
        f"runs that are not shown took {_hours(beside)} more",
    ]
    if whole.open_ends:
        what = _count(whole.open_ends, "start")
        said.append(f"{what} without a recorded end: counted up to the last iteration")
    return [Grid((head, *lines), f"Computation, in {hours}."), Items(tuple(said))]


def _all_runs(rows: Mapping[str, Line]) -> list[Evaluated]:
    return [run for line in rows.values() for run in (*line.runs, *line.repeated)]


def _cost_row(label: str, cost: Cost) -> tuple[str, ...]:
    parts = (cost.kept, cost.repeated, cost.lost, cost.rest, cost.total)
    return (label, str(cost.starts), *map(_hours, parts))


def _hours(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


# ---- what is not shown ---------------------------------------------------------------------------


def _tried(tried: Sequence[Mapping[str, Any]], line: str) -> list[Block]:
    blocks: list[Block] = [Paragraph(f"The sweep: {text}") for text in line.split("\n") if text]
    if not tried:
        return [*blocks, Paragraph("None lies beside the runs that are shown.")]
    head = (
        "name",
        "algorithm",
        "seed",
        "differs from the nearest run in",
        "iterations",
        "end",
        "hours",
    )
    rows = [
        (
            *(_told(one.get(name)) for name in ("name", "algorithm", "seed", "differs")),
            f"{_told(one.get('iterations'))} of {_told(one.get('of'))}",
            *(_told(one.get("ended")), _hours(number_in(one.get("hours"), float) or 0.0)),
        )
        for one in tried[:_SHOWN]
    ]
    more = f" {len(tried) - _SHOWN} more are left out." if len(tried) > _SHOWN else ""
    caption = f"{_count(len(tried), 'folder')} beside the runs that are shown.{more}"
    return [*blocks, Grid((head, *rows), caption)]


def _told(value: Any) -> str:
    return "–" if value in (None, "") else str(value)


def _missing(runs: Sequence[Evaluated], models: Grid) -> list[str]:
    folders = _folders(runs)
    records = {folder.name: _records(folder) for folder in folders}
    gaps = {
        "records of starts": [name for name, found in records.items() if not found],
        "the commit of the code": _where(records, lambda r: not r.get("commit")),
        "code that was edited, beyond its commit": _where(
            records, lambda r: "+changes" in str(r.get("commit"))
        ),
        "hashes of the prompts trained on": [
            folder.name for folder in folders if not (folder / PROMPT_SETS).is_file()
        ],
        "numbers of each prompt": [
            run.folder.name for run in runs if run.rows and not run.by_prompt
        ],
        "revisions": [line[0] for line in models.lines[1:] if line[2].startswith(UNKNOWN)],
        "licences": [line[0] for line in models.lines[1:] if line[3] == UNKNOWN],
    }
    told = [
        f"{what}: of {', '.join(dict.fromkeys(names))}" for what, names in gaps.items() if names
    ]
    return [*told, f"never recorded: {_NEVER}"]


def _where(
    records: Mapping[str, Sequence[Mapping[str, Any]]], is_so: Callable[[Mapping[str, Any]], bool]
) -> list[str]:
    return [name for name, found in records.items() if any(map(is_so, found))]
