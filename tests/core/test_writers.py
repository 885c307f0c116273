"""Every call of the package that writes a file is one of the helpers, or stands here with its
reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import adrpo_scale
from adrpo_scale.run.figures import curves
from adrpo_scale.run.out_of_memory import _append
from tests.support.obstacles import OBSTACLES, Precious

RAW = {
    *("write_text", "write_bytes", "touch", "savefig", "save_file", "save_pretrained", "copyfile"),
    *("copytree", "write_table", "to_csv", "dump", "tofile", "extractall", "mkstemp", "truncate"),
}
IN_AN_EXPORT = "a folder that the export has made, which no other name leads to"
OF_A_PROCESS = "a temporary folder of the process, which nobody else may enter"
ALLOWED = {
    "core/files.py": "the helpers",
    "core/lock_file.py": "a new file, with O_EXCL",
    "core/folder_lock.py": "the time of its own lock",
    "core/screen.py": "/dev/null",
    "training/stopwatch.py": "a file of /proc",
    "training/metrics.py": "a table in memory",
    "run/figures.py": "a picture in memory",
    "evaluation/mmau/endpoint.py": "a clip in memory",
    "evaluation/report/figures/style.py": "a picture in memory",
    "evaluation/report/bundle.py": "a new file, with O_EXCL, which takes its name when it is whole",
    "evaluation/report/unbundle.py": OF_A_PROCESS,
    "hub/pickles.py": "a folder that the conversion has made",
    "checkpoint/locate.py": "a folder that the start has made",
    "export/copies.py": IN_AN_EXPORT,
    "export/peft_folder.py": IN_AN_EXPORT,
    "export/card.py": IN_AN_EXPORT,
    "export/folder.py": IN_AN_EXPORT,
    "export/merged_base.py": "a folder of mkdtemp",
    "cluster/doctor/machine.py": OF_A_PROCESS,
    "core/plain_objects.py": "bytes in memory",
    "export/verify.py": OF_A_PROCESS,
    "export/load_check.py": OF_A_PROCESS,
    "demo/text/build.py": "made when the package is developed",
    "demo/audio/build.py": "made when the package is developed",
    "demo/image/build.py": "made when the package is developed",
    "demo/image/clip.py": "made when the package is developed",
}


def writes(call):
    """The name of a call that writes a file without a helper; None for any other."""
    name = ast.unparse(call.func).rpartition(".")[2]
    texts = [ast.unparse(part) for part in [*call.args, *(k.value for k in call.keywords)]]
    if name in RAW:
        return name
    if name == "open" and not any(keyword.arg == "opener" for keyword in call.keywords):
        modes = [text.strip("'") for text in texts[:2]]
        if any(mode in ("w", "a", "x", "wb", "ab", "xb", "w+", "r+", "r+b") for mode in modes):
            return name
        return name if any("O_CREAT" in text or "O_WRONLY" in text for text in texts) else None
    return None


def test_every_writer_is_a_helper_or_has_a_reason():
    root, found = Path(adrpo_scale.__file__).parent, set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and writes(node):
                found.add(path.relative_to(root).as_posix())
    assert found - ALLOWED.keys() == set(), "write through adrpo_scale.core.files"


ROW = {"run": "r", "split": "train", "metric": "reward", "iteration": 0, "value": 1.0}


@pytest.mark.parametrize("obstacle", ["a link to a file", "a link to nothing", "a FIFO"])
def test_curves_and_lines_about_memory_leave_what_has_their_name(tmp_path, obstacle):
    precious = Precious(tmp_path / "elsewhere")
    for name in ("curves.png", "lines.jsonl"):
        OBSTACLES[obstacle](tmp_path / name, precious)
    _append(tmp_path / "lines.jsonl", {"rank": 0})
    curves([[ROW]], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert precious.is_whole() and not (tmp_path / "nothing").exists()


def test_a_figure_has_the_format_of_its_name(tmp_path):
    for name, mark in (("c.svg", b"<?xml"), ("c", b"\x89PNG")):
        curves([[ROW]], tmp_path / name)
        written = tmp_path / (name if "." in name else f"{name}.png")
        assert written.read_bytes().startswith(mark)
