"""The house in numbers: `python -m tests.support.structure [--base REVISION]`.

Prints a table of the working tree, and beside it of a revision, which is read through git. `floors`
is the longest chain of imports: of places, where a place is a folder of `adrpo_scale/` or a module
that lies loose in it, and of modules. What imports each other in a circle is one place.
"""

from __future__ import annotations

import argparse
import ast
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "adrpo_scale"
Graph = dict[str, set[str]]


def working_tree() -> dict[str, str]:
    """Text of every Python and Markdown file that git knows or would add, by path."""
    listed = git("ls-files", "--cached", "--others", "--exclude-standard")
    paths = [path for path in listed.splitlines() if (ROOT / path).is_file()]
    return {path: (ROOT / path).read_text() if is_read(path) else "" for path in paths}


def revision(name: str) -> dict[str, str]:
    """The same of a revision. Raises CalledProcessError where git does not know it."""
    paths = git("ls-tree", "-r", "--name-only", name).splitlines()
    wanted = "".join(f"{name}:{path}\n" for path in paths if is_read(path))
    answer = git("cat-file", "--batch", given=wanted).encode()
    files, place = dict.fromkeys(paths, ""), 0
    for path in filter(is_read, paths):
        head, _, _ = answer[place:].partition(b"\n")
        start = place + len(head) + 1
        place = start + int(head.split()[-1]) + 1
        files[path] = answer[start : place - 1].decode()
    return files


def is_read(path: str) -> bool:
    return path.endswith((".py", ".md"))


def git(*arguments: str, given: str = "") -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], input=given.encode(), capture_output=True, check=True
    )
    return done.stdout.decode()


# ---- imports -------------------------------------------------------------------------------------


def modules(files: Mapping[str, str]) -> dict[str, str]:
    """Source of every module of the package by its dotted name without the package's."""
    inside = [p for p in files if p.startswith(f"{PACKAGE}/") and p.endswith(".py")]
    return {p.removeprefix(f"{PACKAGE}/").removesuffix(".py"): files[p] for p in inside}


def imports(files: Mapping[str, str]) -> Graph:
    """Which modules a module imports, wherever in it the import stands."""
    sources = modules(files)
    return {name: set(_imported(source, sources)) - {name} for name, source in sources.items()}


def _imported(source: str, known: Mapping[str, str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in found:
            parts = name.split(".")[1:] if name.split(".")[0] == PACKAGE else []
            while parts and "/".join(parts) not in known:
                parts = parts[:-1]
            if parts:
                yield "/".join(parts)


def places(graph: Graph) -> Graph:
    """The same arrows between folders, and modules that lie in none."""
    found: Graph = {name.split("/")[0]: set() for name in graph}
    for name, others in graph.items():
        here = name.split("/")[0]
        found[here] |= {other.split("/")[0] for other in others} - {here}
    return found


def floors(graph: Graph) -> int:
    """Nodes of the longest chain; a circle counts as one."""
    reach = {name: _reachable(graph, name) for name in graph}
    circle = {n: frozenset(m for m in reach[n] if n in reach[m]) | {n} for n in graph}
    height: dict[frozenset[str], int] = {}

    def of(part: frozenset[str]) -> int:
        if part not in height:
            below = {circle[other] for name in part for other in graph[name]} - {part}
            height[part] = 1 + max(map(of, below), default=0)
        return height[part]

    return max(map(of, circle.values()), default=0)


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def layer_exceptions(files: Mapping[str, str]) -> int:
    """Arrows, as pairs of modules, that the layer test names beside its list of layers."""
    found = 0
    for path in ("tests/test_layers.py", "tests/unit/test_layers.py"):
        for node in ast.parse(files.get(path, "")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Set):
                found += sum(isinstance(element, ast.Tuple) for element in node.value.elts)
    return found


# ---- sizes ---------------------------------------------------------------------------------------


def longest_file(files: Mapping[str, str], folder: str) -> tuple[int, str]:
    inside = [p for p in files if p.startswith(f"{folder}/") and p.endswith(".py")]
    return max(((len(files[p].splitlines()), p) for p in inside), default=(0, "none"))


def longest_function(files: Mapping[str, str]) -> tuple[int, str]:
    """Lines from `def` to its last one."""
    found = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{name}.py:{node.name}")
        for name, source in modules(files).items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return max(found, default=(0, "none"))


def test_functions(files: Mapping[str, str]) -> int:
    tests = [t for p, t in files.items() if p.startswith("tests/") and p.endswith(".py")]
    nodes = (node for text in tests for node in ast.walk(ast.parse(text)))
    return sum(isinstance(n, ast.FunctionDef) and n.name.startswith("test_") for n in nodes)


test_functions.__test__ = False  # type: ignore[attr-defined]  # a count, no test


def facts(files: Mapping[str, str]) -> dict[str, str]:
    """What is counted, by its name."""
    graph = imports(files)
    entries = {p.split("/")[1] for p in files if p.startswith(f"{PACKAGE}/")}
    tests = [len(t.splitlines()) for p, t in files.items() if p.startswith("tests/")]
    return {
        f"entries of {PACKAGE}/": str(len(entries)),
        "floors of folders": str(floors(places(graph))),
        "floors of modules": str(floors(graph)),
        "layer exceptions": str(layer_exceptions(files)),
        "longest file": _sized(longest_file(files, PACKAGE)),
        "longest function": _sized(longest_function(files)),
        "lines of README.md": str(len(files.get("README.md", "").splitlines())),
        "pages of docs/": str(sum(p.startswith("docs/") and p.endswith(".md") for p in files)),
        "functions that are tests": str(test_functions(files)),
        "longest file of tests/": _sized(longest_file(files, "tests")),
        "lines of tests/": str(sum(tests)),
    }


def _sized(found: tuple[int, str]) -> str:
    return f"{found[0]} ({found[1].removeprefix(f'{PACKAGE}/')})"


def table(columns: Mapping[str, Mapping[str, str]]) -> str:
    """Markdown. columns: facts by heading."""
    names = list(next(iter(columns.values())))
    rows: Iterable[list[str]] = [[n, *(column[n] for column in columns.values())] for n in names]
    lines = [["", *columns], ["---"] * (1 + len(columns)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", help="a revision to show beside the working tree, e.g. e257290")
    given = parser.parse_args()
    columns = {given.base: facts(revision(given.base))} if given.base else {}
    print(table({**columns, "now": facts(working_tree())}))


if __name__ == "__main__":
    main()
