"""Pages about the code itself: every module with the first sentence of its docstring, and the names
that `import adrpo_scale` gives."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import adrpo_scale

PACKAGE = Path(adrpo_scale.__file__).parent


def modules() -> str:
    parts = [
        "# Modules\n\nEvery module of `adrpo_scale`, by folder in the order of "
        "[the layers](../internals/layers.md#layers), with the first sentence of its docstring.\n"
    ]
    for folder in folders():
        path = PACKAGE / folder
        rows = [
            f"`{file.relative_to(path).as_posix()}`\n: {summary(file)}\n"
            for file in sorted(path.rglob("*.py"))
            if file.name != "__init__.py"
        ]
        about = summary(path / "__init__.py")
        parts.append(f"## {folder}\n\n{about}\n\n" + "\n".join(rows))
    return "\n".join(parts)


def folders() -> list[str]:
    """In the order of the table of docs/internals/layers.md, then any that it does not know."""
    page = (PACKAGE.parent / "docs/internals/layers.md").read_text()
    listed = re.findall(r"^\| `(\w+)/` \|", page, re.M)
    there = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return sorted(there, key=lambda name: listed.index(name) if name in listed else len(listed))


def summary(file: Path) -> str:
    """The first sentence of a module's docstring."""
    return sentence(ast.get_docstring(ast.parse(file.read_text())))


def sentence(text: str | None) -> str:
    first = " ".join((text or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z`])", first)[0].replace("|", "\\|").replace("<", "&lt;")


def public_names() -> str:
    parts = [
        "# Python\n\nThe names that a script of yours needs; "
        "[From Python](../start/python.md) has three scripts. They are imported when they are "
        "asked for, so `import adrpo_scale` alone loads neither torch nor anything else.\n"
    ]
    for name in adrpo_scale.__all__:
        thing = getattr(adrpo_scale, name)
        if not callable(thing):
            continue
        shown = f"{thing.__module__}.{thing.__qualname__}"
        parts.append(f"`{name}{_signature(thing)}`\n: {about(thing)} `{shown}`\n")
    return "\n".join(parts)


def about(thing: object) -> str:
    """The first sentence of its docstring, or of its module's where that is referred to."""
    own = inspect.getdoc(thing) or ""
    module = inspect.getmodule(thing)
    return sentence(inspect.getdoc(module) if own.startswith("See the module") else own)


def _signature(thing: object) -> str:
    """Of a function: its arguments' names; "" of a class."""
    if not inspect.isfunction(thing):
        return ""
    return f"({', '.join(inspect.signature(thing).parameters)})"
