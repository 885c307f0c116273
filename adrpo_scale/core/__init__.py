"""The lowest layer: errors, types, settings, processes and files."""
