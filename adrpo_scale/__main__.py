"""`python -m adrpo_scale`, which is also what torchrun starts."""

from adrpo_scale.cli.main import main

main()
