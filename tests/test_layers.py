"""The house: one ordered list of folders. A folder imports only folders that stand after it."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import adrpo_scale
from tests.support import structure

PACKAGE = Path(__file__).parents[1] / "adrpo_scale"
FOLDERS = (
    "demo",
    "cli",
    "cluster",
    "export",
    "evaluation",
    "run",
    "training",
    "domains",
    "rewards",
    "engines",
    "checkpoint",
    "data",
    "algorithms",
    "hub",
    "core",
)
LOOSE = {"__init__.py", "__main__.py", "py.typed"}


def imported(module):
    """Modules of this package that a module imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name for name in found if name.split(".")[0] == "adrpo_scale"}
    return {file_of(name.split(".")[1:]) for name in inside}


def file_of(parts):
    """The module in which the dotted name `parts` is."""
    while parts and not (PACKAGE / "/".join(parts)).with_suffix(".py").is_file():
        assert not (PACKAGE / "/".join(parts)).is_dir(), f"{parts}: import from its modules"
        parts = parts[:-1]
    return "/".join(parts)


FILES = [p.relative_to(PACKAGE).with_suffix("").as_posix() for p in sorted(PACKAGE.rglob("*.py"))]
MODULES = [name for name in FILES if not name.endswith("__init__")]


def floor(module):
    """The place of a module's folder in the list; in front of it what stands in no folder."""
    return FOLDERS.index(module.split("/")[0]) if "/" in module else -1


def test_the_list_names_every_folder_and_nothing_lies_loose():
    inside = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert inside <= {*FOLDERS, *LOOSE}
    assert {*FOLDERS} <= inside


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    assert [other for other in sorted(imported(module)) if floor(other) < floor(module)] == []


def test_no_module_imports_itself_by_a_detour():
    graph = {module: imported(module) for module in FILES}
    assert list(TopologicalSorter(graph).static_order())


def test_init_files_only_describe():
    for name in set(FILES) - set(MODULES) - {"__init__"}:
        body = ast.parse((PACKAGE / f"{name}.py").read_text()).body
        assert all(isinstance(node, ast.Expr | ast.Assign) for node in body), name


def test_the_packages_own_init_imports_nothing_until_it_is_asked():
    """It stands above all folders and re-exports: for type checkers by imports that never run, for
    a script by `_HOMES`, the same names from the same modules."""
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    (checked,) = [node for node in body if isinstance(node, ast.If)]
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    homes = {}
    for node in checked.body:
        homes.setdefault(node.module.removeprefix("adrpo_scale."), []).extend(
            alias.name for alias in node.names
        )
    assert {home: tuple(names) for home, names in homes.items()} == adrpo_scale._HOMES
    run_at_once = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {node.module for node in run_at_once} == {"importlib", "typing"}
    assert all(getattr(adrpo_scale, name) is not None for name in adrpo_scale.__all__)


def used_names(module):
    """Dotted names that a module imports or calls, e.g. "torch.load"."""
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)


def test_nothing_reads_or_writes_pickles():
    forbidden = ("pickle", "dill", "joblib", "shelve", "torch.load", "torch.save", "numpy.load")
    forbidden += ("cloudpickle", "np.load", "np.save")
    users = {(m, name) for m in FILES for name in used_names(m) if name.startswith(forbidden)}
    # Third-party weights that exist as pickles alone are converted once, by weights_only.
    place = "hub/pickles"
    allowed = {(place, name) for name in ("pickle", "pickle.UnpicklingError", "torch.load")}
    # Messages between a run and the process of its reward, which live no longer than both.
    allowed |= {("rewards/apart", name) for name in ("pickle", "pickle.dumps", "pickle.loads")}
    # Messages between ranks, of which data alone is read.
    names = ("", ".Pickler", ".PicklingError", ".Unpickler", ".UnpicklingError")
    allowed |= {("core/plain_objects", f"pickle{name}") for name in names}
    assert users == allowed
    tree = ast.parse((PACKAGE / f"{place}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert all("weights_only=True" in map(ast.unparse, call.keywords) for call in loads)


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    """pytest's own list of folders to skip has `dist` and `build` in it."""
    skipped = pytestconfig.getini("norecursedirs")
    folders = {path.parent.name for path in Path(__file__).parent.rglob("test_*.py")}
    assert {"core", "engines", "training", "slow", "slurm", "gpu"} <= folders
    assert not [name for name in folders for pattern in skipped if fnmatch(name, pattern)]


def test_functions_and_files_are_short():
    """CONTRIBUTING's limits; a file of tests may have 500 lines."""
    files = structure.working_tree()
    lines, function = structure.longest_function(files)
    assert lines <= 60, function
    for folder, limit in (("adrpo_scale/", 350), ("tests/", 500)):
        lines, name = structure.longest_file(files, folder)
        assert lines <= limit, name
