"""One step in a process of its own: `python -m tests.gpu.steps TABLE NAME --out FILE`."""

from __future__ import annotations

import argparse
import os
import tempfile
import traceback
from pathlib import Path

from tests.gpu.steps.base import FAIL, NOT_RUN, Case, Findings, NotRun
from tests.gpu.steps.tables import TABLES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("name")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.dry_run:
        os.environ["DS_ACCELERATOR"] = "cpu"  # read once, when DeepSpeed is imported
    step = next(step for step in TABLES[given.table] if step.name == given.name)
    found = Findings(given.out)
    with tempfile.TemporaryDirectory(prefix="adrpo-gpu-") as name:
        try:
            step.run(Case(Path(name), given.models, given.dry_run, given.seconds, found))
            found.end()
        except NotRun as reason:
            found.end(NOT_RUN, str(reason))
        except BaseException as error:
            traceback.print_exc()
            first = str(error).strip().split("\n")[0][:300]
            failed = "".join(f"; {text}" for text in found.failed)
            found.end(FAIL, f"{type(error).__name__}: {first}{failed}")


if __name__ == "__main__":
    main()
