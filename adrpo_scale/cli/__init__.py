"""The command `adrpo-scale`: one file a command.

Heavy imports stand inside the commands, so that `--help` answers at once.
"""
