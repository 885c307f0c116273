"""No text of others reaches a terminal as an order to it."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adrpo_scale.cli import main as cli
from adrpo_scale.core import printable as printable_module
from adrpo_scale.core.printable import Formatter, one_line, printable

HIDES = "fine\x1b[2K\x1b[1A\rall is well"
ORDERS = [
    HIDES,
    "\x1b]0;a title\x07",  # renames the window
    "\x1b]52;c;bHM=\x07",  # writes the clipboard
    "\x1b[6n",  # asks; the answer lands in the shell
    "\x9b31m",  # the same introducer in one character
    "\x1bP0;1|x\x1b\\",
    "a\x08\x08b",
    "\x00\x07\x0b\x0c\x0e\x7f\x85",
    "user\u202etxt.exe",  # reads backwards
    "half \ud800 a pair",
    "\u2028a line of its own",
]


@pytest.mark.parametrize("text", ORDERS)
def test_controls_are_shown(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable() and printable(shown) == shown
    assert len(shown) > len(text)


def test_texts_of_all_languages_stay() -> None:
    for text in ("тест 中文\t日本\n", "👩‍👩‍👧 می‌خواهم", "a\r\nb", "no\xa0break", "[/x] ²"):
        assert printable(text) == text
    assert one_line("run\nstate: done\r\n\t") == "run\\nstate: done\\r\\n\\t"


def test_a_log_has_no_orders() -> None:
    record = logging.LogRecord("n", logging.WARNING, "f", 1, "reward %s", (HIDES,), None)
    assert Formatter("%(message)s").format(record) == f"reward {printable(HIDES)}"


WAYS = """
    import logging, sys, warnings
    from adrpo_scale.core import screen
    from adrpo_scale.core.console import (
        console, new_console, say, show, warnings_on_screen, wide)
    from rich.console import Console
    from rich.progress import Progress, TextColumn
    from rich.table import Table
    from rich.text import Text

    evil = sys.argv[1]
    table = Table("name", evil)
    table.add_row(evil, Text(evil))
    with screen.guarded():
        print(evil)
        print("error:", evil, file=sys.stderr)
        say(evil), show(table), console.print(Text(evil, "red")), wide().print(evil)
        new_console(stderr=True).print(evil)
        Console(stderr=True).print(Text(evil, "blue"))  # as typer does
        logging.basicConfig(handlers=[warnings_on_screen()], force=True)
        logging.warning("about %s", evil)
        with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
            bar.add_task(evil)
            print("below the bar", evil)
        sys.stderr.write("\\r 50% |####  |" + evil)
"""


def test_no_way_of_printing_passes_an_order_on_to_a_terminal() -> None:
    """Colours and the moves of our own progress line do reach it."""
    evil = "x\x1b]0;title\x07y\x1b[2Jz\x9bw"
    keyboard, terminal = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAYS), evil],
        env=os.environ | {"TERM": "xterm", "COLUMNS": "150", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    written = b""
    try:
        while piece := os.read(keyboard, 65536):
            written += piece
    except OSError:  # the other end is closed
        pass
    os.close(keyboard)
    assert started.wait(60) == 0, written.decode()
    for order in (b"\x1b]0;", b"\x07", b"\x1b[2J", b"\x9b".join((b"z\xc2", b"w"))):
        assert order not in written
    assert written.count(rb"x\x1b]0;title") >= 12
    assert b"\x1b[31m" in written and b"\x1b[34m" in written and b"\r 50% |" in written


def test_the_state_of_a_run_cannot_be_written_by_its_folder(tmp_path: Path) -> None:
    """Names and records of a run folder are one line each, of printable characters."""
    run = tmp_path / "run\x1b[2J\nstate      done"
    (run / "lives").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"iterations": 3}))
    line = {"iteration": 1, "split": "a\x1b]0;t\x07\nused  9", "metric": "reward", "value": 1}
    (run / "eval.jsonl").write_text(json.dumps(line) + "\n")
    (run / "metrics.jsonl").write_text('{"iteration": 1, "reward": 2}\n')
    other = tmp_path / "other"
    shutil.copytree(run, other)
    for runs in ([run], [run, other]):
        shown = CliRunner().invoke(cli.app, ["status", *map(str, runs)]).output
        assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[2J\\nstate" in shown
        assert not [
            line for line in shown.split("\n") if line.startswith(("state      done", "used  9"))
        ]


def test_every_console_is_one_of_these() -> None:
    """help.py prints its own text."""
    package = Path(printable_module.__file__).parents[1]
    makers = {p.name for p in package.rglob("*.py") if re.search(r"\bConsole\(", p.read_text())}
    assert makers == {"help.py"}
