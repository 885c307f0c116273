"""The reference of the documentation, made from the code: commands, settings, metrics, errors.

`docs/conf.py` calls `write` before every build, so the reference cannot be older than the code.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer.main
from pydantic.fields import FieldInfo

from adrpo_scale.cli.main import app
from adrpo_scale.core import errors as named_errors
from adrpo_scale.core.components import Table
from adrpo_scale.core.errors import AdrpoError, exit_code
from adrpo_scale.core.settings import Effect, Section, notes_of
from adrpo_scale.evaluation.asked import ImageModel, PromptSet, TextModel, TextSampling
from adrpo_scale.evaluation.mmau.base import MmauConfig
from adrpo_scale.run.config import RunConfig
from adrpo_scale.run.registry import ALGORITHMS, DOMAINS, ENGINES, REWARDS
from adrpo_scale.training import metric_names
from docs.generate_code import modules, public_names

LIMITS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
EFFECTS: dict[Effect, str] = {
    "maths": "refused",
    "content": "content compared",
    "rounding": "rounding",
    "none": "free",
}
COMPONENTS: dict[str, tuple[str, Table[Any]]] = {
    "domain": ("[domain]", DOMAINS),
    "algorithm": ("[algorithm]", ALGORITHMS),
    "rewards": ("[[rewards]]", REWARDS),
    "engine": ("[engine]", ENGINES),
}
EVALUATIONS: dict[str, type[Section]] = {
    "[prompts] or [[prompts]]": PromptSet,
    "[sampling]": TextSampling,
    "[models.NAME] of pictures": ImageModel,
    "[models.NAME] of completions": TextModel,
}
"""The sections of a run that are one of several classes: their head in TOML, and their table."""


def write(folder: Path, pages: Mapping[str, Callable[[], str]] | None = None) -> None:
    """Writes every page that is not what lies there, so that Sphinx reads again only those that
    have changed. pages: by file name; those of the reference by default."""
    pages = PAGES if pages is None else pages
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.md"):
        if path.name not in pages:  # of another version, and in no table of contents
            path.unlink()
    for name, page in pages.items():
        text, path = page(), folder / name
        if not path.is_file() or path.read_text() != text:
            whole = path.with_suffix(f".{os.getpid()}")
            whole.write_text(text)  # of two builds at once neither reads half a page
            whole.replace(path)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, its cells escaped."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[escaped(cell) for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def escaped(cell: str) -> str:
    """A cell in which "|" ends no column, and "<" begins no tag outside code."""
    parts = re.split(r"(`[^`]*`)", cell.replace("|", "\\|").replace("\n", " "))
    return "".join(p if p.startswith("`") else p.replace("<", "\\<") for p in parts)


# --- commands -------------------------------------------------------------------------------------


def commands(
    group: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words after `adrpo-scale`, click's command) of every command that does something."""
    group = typer.main.get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def command_line() -> str:
    parts = [
        "# Command line\n\nEvery command of `adrpo-scale` (also `python -m adrpo_scale`), as its "
        "`--help` shows it. [Exit codes](errors.md#exit-codes) are the same for all of them.\n"
    ]
    for words, command in commands():
        parts.append(f"## adrpo-scale {' '.join(words)}\n\n{_help(command)}\n")
        order = sorted(command.params, key=lambda p: p.param_type_name != "argument")
        rows = [[_name(p), _default(p), p.help or ""] for p in order]
        parts.append(table(["", "default", "meaning"], rows))
    return "\n".join(parts)


def _help(command: Any) -> str:
    """The text of `--help`, its examples as a block."""
    text, _, examples = (command.help or "").partition("\f")
    return f"{text}\n" + (f"\n```sh\n{examples}\n```\n" if examples else "")


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.name.upper()}`" + (" …" if parameter.nargs == -1 else "")
    value = "" if parameter.is_flag else f" {_value(parameter)}"
    return f"`{parameter.opts[0]}{value}`"


def _value(parameter: Any) -> str:
    """TEXT, PATH, INTEGER or NUMBER."""
    names = ((int, "INTEGER"), (float, "NUMBER"), (Path, "PATH"))
    annotation = parameter.type_descriptor.annotation
    held = (annotation, *get_args(annotation))
    return next((name for kind, name in names if kind in held), "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default is None or default is False or default == [] or callable(default):
        return ""
    return f"`{default}`"


# --- settings -------------------------------------------------------------------------------------


def settings() -> str:
    parts = [
        "# Settings\n\n"
        "A run is one strict TOML file; [Your config](../start/your-config.md) says how to write "
        "one. `adrpo-scale config CONFIG` shows these tables for one config, with its values.\n\n"
        "The last column says what becomes of a run that is resumed with another value. "
        "**refused**: it would learn something else, so `--allow-change` must name the setting. "
        "**content compared**: the name may change, the files behind it may not. **rounding**: "
        "the same but for the order of sums. **free**: nothing that is trained depends on it.\n"
    ]
    for key, info in RunConfig.model_fields.items():
        if key in COMPONENTS:
            head, known = COMPONENTS[key]
            own = f'`{known.tag} = "my_module:MyClass"` names one of your own.'
            parts.append(f"## {head}\n\n{_sentence(info.description)} {own}\n")
            for name in known:
                rows = settings_table(known.config_of(name), key, name)
                parts.append(f'### {known.tag} = "{name}"\n\n{rows}')
        elif section := section_of(info.annotation):
            parts.append(f"## [{key}]\n\n{_sentence(info.description)}\n")
            parts.append(settings_table(section, key))
    top = [row for row in setting_rows(RunConfig, "") if "." not in row[0]]
    parts.insert(1, "## At the top of the file\n\n" + _settings_table(top, ""))
    parts.append(
        "## A benchmark's file\n\n`adrpo-scale evaluate` reads a TOML file of its own, such as "
        "`configs/omni/mmau.toml`.\n\n" + settings_table(MmauConfig, "evaluate")
    )
    parts.append(
        '## An evaluation\'s file\n\nWith `benchmark = "images"` or `"text"`, that file has `to`, '
        "the sections below, and `[[scorers]]`, each as a `[[rewards]]` entry above.\n"
    )
    for head, section in EVALUATIONS.items():
        place = re.sub(r"\W+", "-", head).strip("-")
        parts.append(f"### {head}\n\n{settings_table(section, f'evaluation-{place}')}")
    return "\n".join(parts)


def _sentence(text: str | None) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


Row = tuple[str, str, str, str, str]
"""Dotted key, type with limits, default, meaning, what a changed value does at a resume."""


def settings_table(section: type[Section], place: str, component: str = "") -> str:
    """Every setting of a section, those of sections in it too."""
    prefix = "-".join(filter(None, ["setting", place, component]))
    return _settings_table(list(setting_rows(section, "")), prefix)


def _settings_table(rows: Sequence[Row], prefix: str) -> str:
    shown = [
        [f"[`{key}`]{{#{_anchor(prefix, key)}}}", kind, default, meaning, effect]
        for key, kind, default, meaning, effect in rows
    ]
    return table(["key", "type", "default", "meaning", "changed at a resume"], shown)


def _anchor(prefix: str, key: str) -> str:
    return "-".join(filter(None, [prefix or "setting", key])).replace(".", "-").replace("_", "-")


def setting_rows(
    section: type[Section], prefix: str, inherited: Effect | None = None
) -> Iterator[Row]:
    """A row for each setting of a class, depth first, as `settings.walk` goes over a config."""
    for name, info in section.model_fields.items():
        notes = notes_of(info)
        effect: Any = notes.get("effect") or inherited
        inner = section_of(info.annotation)
        if section is RunConfig and (inner or name in COMPONENTS):
            continue
        if inner and get_origin(info.annotation) is not dict:
            yield from setting_rows(inner, f"{prefix}{name}.", effect)
            continue
        meaning = info.description or ""
        if "paper" in notes:
            meaning += f" (the paper's default: {notes['paper']})"
        if "formerly" in notes:
            meaning += f" (also accepted: {', '.join(notes['formerly'])})"
        is_run = section not in (MmauConfig, *EVALUATIONS.values())
        shown = EFFECTS[effect or section.EFFECT] if is_run else ""
        yield f"{prefix}{name}", _type(info), _default_of(info), meaning, shown


def section_of(annotation: Any) -> type[Section] | None:
    """The one section class that an annotation holds; None for a value, or several classes."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Section) else None
    if get_origin(annotation) not in (Union, UnionType, dict):
        return None
    found = [section_of(part) for part in get_args(annotation)]
    classes = [part for part in found if part is not None]
    return classes[0] if len(classes) == 1 else None


def _type(info: FieldInfo) -> str:
    limits = [
        f"{sign} {_number(getattr(note, name))}"
        for note in info.metadata
        for name, sign in LIMITS.items()
        if getattr(note, name, None) is not None
    ]
    return " ".join([type_name(info.annotation), ", ".join(limits)]).strip()


def _number(value: float) -> str:
    return "2⁶³" if value == 2**63 else f"{value:g}"


def type_name(annotation: Any) -> str:
    """As in TOML: string, integer, number, true/false, or the words that are allowed."""
    names = {str: "string", int: "integer", float: "number", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{_toml(part)}`" for part in parts)
    if get_origin(annotation) in (list, tuple):
        return f"list of {type_name(parts[0])}"
    if get_origin(annotation) is dict or annotation is dict:
        return "table"
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(type_name(part) for part in parts if part is not type(None))
    return "section" if section_of(annotation) else getattr(annotation, "__name__", "anything")


def _default_of(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    default = info.get_default(call_default_factory=True)
    return "–" if default is None else f"`{_toml(default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


# --- metrics --------------------------------------------------------------------------------------


def metrics() -> str:
    files = (
        ("metrics.jsonl", "One JSON object an iteration.", metric_names.ITERATION),
        ("eval.jsonl", "One JSON object a number. Its keys:", metric_names.EVALUATION_ROW),
        (
            "eval_prompts.jsonl",
            "One JSON object a split and evaluation: the same numbers, prompt by prompt.",
            metric_names.PROMPT_ROW,
        ),
        ("Names of metrics in eval.jsonl", "Values of `metric`.", metric_names.EVALUATION),
        (
            "samples/completions-NNNNNN.parquet",
            "One row a completion, of language models.",
            metric_names.COMPLETION,
        ),
        ("lives/NN.json", "The record of a start.", metric_names.START),
    )
    parts = [
        "# Metrics\n\nEvery name that a run writes. NAME stands for a reward's name, PHASE for "
        "rollout, reward or update. Numbers that are not finite or were not measured are null.\n"
    ]
    for title, text, names in files:
        rows = [[f"`{m.name}`", m.meaning, m.when or "always"] for m in names]
        parts.append(f"## {title}\n\n{text}\n\n{table(['name', 'meaning', 'written with'], rows)}")
    return "\n".join(parts)


# --- errors ---------------------------------------------------------------------------------------


def errors() -> str:
    classes = [e for e in vars(named_errors).values() if _is_error(e)]
    rows = [[f"`{e.__name__}`", str(exit_code(e(""))), _sentence(_first(e))] for e in classes]
    codes = [
        ["0", "Done."],
        ["1", "A fault of this package, with a traceback; `inspect`: a hash does not hold."],
        [
            "2",
            "An error of the user's to fix; `plan`: the run does not fit; `train`: the run has "
            "come to its end and learned nothing.",
        ],
        ["3", "A limit of `[limits]` was reached."],
        ["4", "A node is unfit or absent; exclude it, and other nodes work."],
        [str(named_errors.STOPPED), "Stopped by a signal: start the same command again."],
        [str(named_errors.LOST), "Another process or the network was lost."],
    ]
    return (
        "# Errors\n\nThe command prints the message of a named error alone, without a traceback: "
        "the value, the expectation and the remedy. Anything else is a fault of this package and "
        "keeps its traceback.\n\n## Exit codes\n\n"
        + table(["code", "meaning"], codes)
        + "\n[Why 85](../decisions/exit-code-85.md).\n\n## Named errors\n\n"
        + table(["class in `adrpo_scale.core.errors`", "exit code", "rises when"], rows)
    )


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, AdrpoError) and value is not AdrpoError


def _first(error: type) -> str:
    return (error.__doc__ or "").strip().rstrip(".").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line,
    "settings.md": settings,
    "metrics.md": metrics,
    "errors.md": errors,
    "python.md": public_names,
    "modules.md": modules,
}
