"""What everything stands on: errors, types, settings, processes, files."""
