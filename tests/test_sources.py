"""What no source of the package may hold, because it would be a claim and no check."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "adrpo_scale"
FILES = sorted(PACKAGE.rglob("*.py"))


def nodes(path):
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_checked_by_what_python_leaves_out_when_it_optimises(path):
    asserted = [node.lineno for node in nodes(path) if isinstance(node, ast.Assert)]
    debug = [n.lineno for n in nodes(path) if isinstance(n, ast.Name) and n.id == "__debug__"]
    assert asserted == debug == []


# Every call that hands a file to a library that could open a pickle or run code: file → calls.
DOORS = {
    "hub/loaders.py": {"from_pretrained"},
    "hub/pickles.py": {"load"},
    "hub/weights.py": {"snapshot_download"},
    "hub/lock.py": {"snapshot_download"},
    "hub/download.py": {"snapshot_download"},
    "rewards/clip_of_open_clip.py": {
        "create_model_and_transforms",
        "download_pretrained",
        "get_tokenizer",
        "load_checkpoint",
    },
    "evaluation/images/adapters.py": {"load_lora_weights"},
    "export/load_check.py": {"from_pretrained", "load_lora_weights"},
    "export/merged_base.py": {"from_pretrained"},  # of peft, once its safetensors are there
    "export/tensor_check.py": {"from_pretrained"},
    "rewards/apart.py": {"loads"},  # of a process of our own, through a pipe of our own
}
LOADERS = {*set().union(*DOORS.values()), "create_model", "create_model_from_pretrained"}
LOADERS |= {"hf_hub_download", "load_module", "read_pickle", "unsafe_load", "full_load"}
READERS = {"torch", "pickle", "np", "numpy", "yaml", "marshal", "joblib"}  # by `load` or `loads`
AUTO = {"AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel"}


def calls(path):
    """(whose, name, keywords) of every call `whose.name(…)` and `name(…)`."""
    for node in nodes(path):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            whose, _, name = ast.unparse(node.func).rpartition(".")
            yield whose, name, keywords


def loaders(path):
    """Of the calls, those that load."""
    for whose, name, keywords in calls(path):
        if name in LOADERS and (whose in READERS or name not in {"load", "loads"}):
            yield whose, name, keywords


def test_every_loader_of_other_peoples_files_is_known():
    found = {}
    for path in FILES:
        found[str(path.relative_to(PACKAGE))] = {name for _, name, _ in loaders(path)}
    found = {path: names for path, names in found.items() if names}
    assert found == DOORS


def test_what_a_loader_is_told():
    """No pickle, no code of a model's own, nothing of the network."""
    settings, weights = (keywords for _, _, keywords in loaders(PACKAGE / "hub/loaders.py"))
    assert settings["trust_remote_code"] == "False" and weights["use_safetensors"] == "True"
    assert settings["local_files_only"] == weights["local_files_only"] == "True"
    ((_, _, adapters),) = loaders(PACKAGE / "evaluation/images/adapters.py")
    assert adapters["local_files_only"] == adapters["use_safetensors"] == "True"
    for whose, _, keywords in loaders(PACKAGE / "hub/pickles.py"):
        assert (whose, keywords["weights_only"]) == ("torch", "True")
    for path in FILES:
        for whose, name, keywords in calls(path):
            asks = name == "from_config" and (whose in AUTO or "_class()" in whose)
            assert not asks or keywords["trust_remote_code"] == "False", path


def test_a_copy_is_made_where_its_source_is_checked():
    makers = {p for p in FILES for _, name, _ in calls(p) if name == "Copy"}
    assert makers == {PACKAGE / "export/copies.py"}
