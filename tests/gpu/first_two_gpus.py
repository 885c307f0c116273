"""What only two GPUs show: `python -m tests.gpu.first_two_gpus [--steps a,b] [--out FILE]`.

As `first_ten_minutes`, whose options it has; `--dry-run` takes two processes over gloo.
"""

from __future__ import annotations

import sys

from tests.gpu.first_ten_minutes import main

if __name__ == "__main__":
    sys.exit(main("two_gpus"))
