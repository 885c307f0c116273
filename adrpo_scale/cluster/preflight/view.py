"""The output of a preflight: a line for each check, and its findings below."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.text import Text

from adrpo_scale.cluster.preflight.base import Check, Finding, bad_nodes, exit_code, listed
from adrpo_scale.core.console import new_console

_SIGNS = {"fine": ("✓", "green"), "warning": ("!", "yellow"), "fault": ("✗", "red")}
_WIDTH = 12  # columns of the names


def show(checks: Sequence[Check], title: str, seconds: float) -> None:
    """Prints the table; the last line is the verdict, with the seconds taken."""
    # A console of its own: a finding is one line at any width of the terminal.
    console = new_console(highlight=False, soft_wrap=True)
    console.print(title)
    for check in checks:
        for line in lines_of(check):
            console.print(line)
    console.print(_verdict(checks, seconds))


def lines_of(check: Check) -> list[Text]:
    """The lines of a check: its name and what is stated, or its name and its findings."""
    sign, colour = _SIGNS[check.state]
    if check.state == "fine":
        return [Text.assemble((sign, colour), f" {check.name:{_WIDTH}}", check.stated)]
    parts = [part for finding in check.findings for part in _lines(finding)]
    return [
        Text.assemble((sign, colour), f" {check.name}"),
        *(Text(f"    {part}") for part in parts),
    ]


def _lines(finding: Finding) -> list[str]:
    who = f"{listed(finding.nodes)}: " if finding.nodes else ""
    first = "" if finding.severity == "fault" else "warning: "
    value = f"{first}{who}{finding.value}".splitlines()
    return [*value, f"expected: {finding.expectation}", f"remedy: {finding.remedy}"]


def _verdict(checks: Sequence[Check], seconds: float) -> str:
    code, bad = exit_code(checks), bad_nodes(checks)
    took = f"in {seconds:.1f} s"
    exclude = f": --exclude={','.join(bad)}" if bad else ""
    if code == 0:
        warned = sum(check.state == "warning" for check in checks)
        return f"fit{f', {warned} with warnings' if warned else ''}, {took}"
    return f"unfit{exclude}, {took} (exit code {code})"


def as_json(checks: Sequence[Check], title: str, seconds: float) -> str:
    """The contents of `show` as JSON."""
    document = {
        "title": title,
        "fit": exit_code(checks) == 0,
        "exit_code": exit_code(checks),
        "bad_nodes": bad_nodes(checks),
        "seconds": round(seconds, 1),
        "checks": [
            {
                "name": check.name,
                "state": check.state,
                "stated": check.stated,
                "said": check.stated,  # its first name, which programs may read
                "findings": [_as_data(finding) for finding in check.findings],
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=2)


def _as_data(finding: Finding) -> dict[str, object]:
    return {
        "severity": finding.severity,
        "scope": finding.scope,
        "nodes": list(finding.nodes),
        "value": finding.value,
        "expectation": finding.expectation,
        "remedy": finding.remedy,
    }
