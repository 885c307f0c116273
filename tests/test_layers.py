"""The arrows between modules: imports point downward, and whatever does not is named here."""

from __future__ import annotations

import ast
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adrpo_scale"
LEVELS = [
    "errors types settings files paths file_hashes tensor_files seeding dist weights preempt"
    " disk_space run_lock life_record watchdog prefetch_lock hub_needs pickles",
    "models algorithms rewards prompts prompt_files metrics audio_clips clip_headers avqa",
    "domains engines checkpoint",
    "batches rollout ema report evaluation training_state saver merged export",
    "trainer",
    "registry config config_view build run_folder resume sampler exporter inspection"
    " life cli cluster_cli preflight prefetch hub_access hub_download plan trial status"
    " evaluate_cli mmau data_cli prepare __main__",
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names.split()}
ASSEMBLY = 5  # the level that puts the others together; its modules may use each other
DEMO = "demo"  # a leaf: imports nothing but itself, and
DEMO_USES = {("demo/audio_build", "avqa")}  # the wording of the prompts that its model is to know
DEMO_USERS = {"rewards/image", "rewards/text"}  # beside the assembly

# Arrows between modules of one level. Errors, and what level 0 is made of:
SAME_LEVEL = {
    ("dist", "errors"),
    ("preempt", "errors"),
    ("preempt", "dist"),
    ("preempt", "watchdog"),
    ("watchdog", "errors"),
    ("disk_space", "errors"),
    ("run_lock", "errors"),
    ("life_record", "files"),
    ("tensor_files", "files"),
    ("file_hashes", "tensor_files"),
    ("weights", "file_hashes"),
    ("paths", "errors"),
    ("seeding", "types"),
    ("weights", "errors"),
    ("hub_needs", "paths"),
    ("pickles", "errors"),
    ("pickles", "files"),
    ("pickles", "hub_needs"),
    ("pickles", "tensor_files"),
    ("prefetch_lock", "errors"),
    ("prefetch_lock", "files"),
    ("prefetch_lock", "hub_needs"),
    ("prefetch_lock", "paths"),
    ("weights", "hub_needs"),
    ("weights", "prefetch_lock"),
    ("weights", "seeding"),
    ("weights", "watchdog"),
    ("prompts", "prompt_files"),  # one thing in two files
    ("clip_headers", "audio_clips"),
    ("prompt_files", "avqa"),  # the wording of one of its formats
    ("rewards/base", "models"),  # what an engine is asked to build
    ("rewards/reward_model", "models"),
    ("report", "batches"),  # whose numbers they are
    ("evaluation/evaluator", "rollout"),  # evaluation is a rollout with other settings
    ("training_state", "ema"),  # a part of the state
    ("saver", "training_state"),  # what is saved
    ("export/folder", "merged"),  # what is written
}
# What the files of one folder share, beside its base.py; such a file imports no sibling but these.
SHARED = {
    "algorithms": {"advantages", "tokens"},
    "checkpoint": {"reader", "retention", "shelf", "staging"},
    "domains": {
        "backends",
        "chat",
        "decoding",
        "embeddings",
        "language_model",
        "omni",
        "scoring",
        "text",  # which audio builds on
    },
    "engines": {"adapters", "loading"},
    "evaluation": {"diversity", "grids", "tables"},
    "export": {
        "adapter",
        "copies",
        "diffusers_layout",
        "folder",
        "hearing_layout",
        "layouts",
        "stored",
        "transformers_layout",
        "verify",
    },
    "mmau": {"endpoint", "local", "predictions", "scoring", "tables"},
    "plan": {
        "advice",
        "audio_parts",
        "calibrate",
        "communication",
        "dealing",
        "flow_parts",
        "hardware",
        "measure",
        "memory",
        "parts",
        "planner",
        "rehearsal",
        "shapes",
        "sharding",
        "text_parts",
        "times",
        "view",
        "workload",
    },
    "preflight": {
        "bandwidth",
        "checks",
        "estimate",
        "facts",
        "gpu_checks",
        "judging",
        "network_checks",
        "rendezvous",
        "survey",
        "view",
    },
    "prepare": {"extract", "pool", "report", "shards", "sources"},
    "rewards": {"text"},
    "status": {"facts", "queue", "state"},
}


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
ARROWS = [(module, other) for module in FILES for other in sorted(imported(module))]


def place(module):
    """The folder, or the module itself: what a level is a list of."""
    return module.split("/")[0]


def is_allowed(module, other):
    here, there = place(module), place(other)
    if DEMO in (here, there):
        is_used = module in DEMO_USERS or LEVEL.get(here) == ASSEMBLY
        return here == there or is_used or (module, other) in DEMO_USES
    if here == there:
        return other == f"{here}/base" or other.removeprefix(f"{here}/") in SHARED[here]
    if LEVEL[here] == LEVEL[there]:
        return LEVEL[here] == ASSEMBLY or (module, other) in SAME_LEVEL
    return LEVEL[there] < LEVEL[here]


def test_every_module_has_a_level():
    assert {place(module) for module in MODULES} == LEVEL.keys() | {DEMO}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    wrong = [other for start, other in ARROWS if start == module and not is_allowed(start, other)]
    assert wrong == []


def test_the_exceptions_are_in_use_and_folders_of_one_level_do_not_meet():
    assert set(ARROWS) >= SAME_LEVEL
    folders = {place(module) for module in MODULES if "/" in module}
    for module, other in SAME_LEVEL:
        assert not {place(module), place(other)} <= folders


def test_no_module_imports_itself_by_a_detour():
    graph = {module: imported(module) for module in FILES}
    assert list(TopologicalSorter(graph).static_order())


def test_init_files_only_describe():
    for name in set(FILES) - set(MODULES):
        body = ast.parse((PACKAGE / f"{name}.py").read_text()).body
        assert all(isinstance(node, ast.Expr | ast.Assign) for node in body), name


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
    allowed = {("pickles", name) for name in ("pickle", "pickle.UnpicklingError", "torch.load")}
    assert users == allowed
    tree = ast.parse((PACKAGE / "pickles.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "torch.load"]
    assert all("weights_only=True" in map(ast.unparse, call.keywords) for call in loads)


def test_no_folder_of_tests_is_passed_over(pytestconfig):
    """pytest's own list of folders to skip has `dist` in it."""
    skipped = pytestconfig.getini("norecursedirs")
    folders = {path.parent.name for path in Path(__file__).parent.rglob("test_*.py")}
    assert {"unit", "dist", "slow", "gpu"} <= folders
    assert not [name for name in folders for pattern in skipped if fnmatch(name, pattern)]
