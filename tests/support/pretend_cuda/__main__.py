"""The command `adrpo-scale` on a pretended CUDA device; what happened on it is printed at the end.

python -m tests.support.pretend_cuda train CONFIG --run-dir RUN …
"""

from __future__ import annotations

import os
import sys

from tests.support.pretend_cuda import pretend_cuda


def main() -> None:
    devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with pretend_cuda(devices) as seen:
        from adrpo_scale.cli.main import main as command

        sys.argv[0] = "adrpo-scale"
        try:
            command()
        finally:
            print(seen.text(), file=sys.stderr)


if __name__ == "__main__":
    main()
