"""One run: its config, registry, assembly, start, resume, folder and tables."""
