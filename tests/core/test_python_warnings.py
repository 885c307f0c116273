"""Warnings as a command shows them, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

LIBRARY = "import warnings\ndef call(n): warnings.warn(f'call {n}: ' + 'old ' * 99, UserWarning)\n"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_")


def shown(tmp_path, body, more=None):
    """(standard error, log file) of a process that warns. more: variables of its environment."""
    folder = tmp_path / "site-packages" / "somelib"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(LIBRARY)
    script = f"""
        import logging, sys, warnings
        sys.path.insert(0, {str(folder.parent)!r})
        import somelib
        from adrpo_scale.core import python_warnings
        def ours(text):
            warnings.warn(text, category=python_warnings.SettingsWarning)
        def set_up():
            file = logging.FileHandler({str(tmp_path / "log")!r})
            logging.basicConfig(format="%(message)s", level="INFO", handlers=[file], force=True)
            python_warnings.as_lines()
        warnings.simplefilter("always")
        with python_warnings.shown_as_lines():
{textwrap.indent(textwrap.dedent(body), " " * 12)}
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=240, env=alone | (more or {})
    )
    log = tmp_path / "log"
    return done.stderr, log.read_text() if log.exists() else ""


def test_ours_are_one_line_and_reach_the_log_of_a_run_that_begins_later(tmp_path):
    err, log = shown(tmp_path, "ours('raise beta0,\\n  please')\nset_up()\nours('later')")
    assert err == "WARNING: raise beta0, please\n"
    assert log == "raise beta0, please\nlater\n"


def test_those_of_libraries_are_shown_once_and_shortened(tmp_path):
    err, _ = shown(tmp_path, "for n in range(3): somelib.call(n)")
    (line,) = err.splitlines()
    assert line.startswith("WARNING: somelib: call 0: old old") and line.endswith("old…")
    assert len(line) < 200
    _, log = shown(tmp_path, "set_up()\nsomelib.call(0)")
    assert "somelib/__init__.py:2: UserWarning: call 0: " in log and "old " * 98 in log


def test_other_ranks_repeat_nothing(tmp_path):
    second = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert shown(tmp_path, "ours('raise beta0')\nsomelib.call(0)", second) == ("", "")
