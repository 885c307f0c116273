"""The ground floor: errors, types, settings, processes, files."""
