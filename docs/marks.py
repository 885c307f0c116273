"""The comments of a shipped TOML file that say where a value comes from."""

from __future__ import annotations

import re
from pathlib import Path

VALUE = r'"[^"]*"|\[[^#]*?\]|[^#"]*?'
LINE = re.compile(rf"(?P<key>[\w.]+) = (?P<value>{VALUE})\s*(?:# (?P<comment>.*))?")


def commented(path: Path) -> dict[str, str]:
    """`section.key = value` → the comment behind it, of every line with a value and a comment."""
    found: dict[str, str] = {}
    section, counts = "", dict[str, int]()
    for line in path.read_text().splitlines():
        if heading := re.match(r"(\[+)([\w.]+)\]", line):
            section = f"{heading[2]}."
            if heading[1] == "[[":
                counts[section] = counts.get(section, -1) + 1
                section += f"{counts[section]}."
        elif (row := LINE.fullmatch(line)) and row["comment"]:
            found[f"{section}{row['key']} = {row['value']}"] = row["comment"]
    return found


def marked(path: Path) -> dict[str, str]:
    """Those whose comment is a mark: paper, inferred, or released."""
    rows = commented(path).items()
    return {row: text for row, text in rows if re.match("paper|inferred|released", text)}
