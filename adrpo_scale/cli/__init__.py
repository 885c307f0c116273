"""The command `adrpo-scale`: one file a command."""
