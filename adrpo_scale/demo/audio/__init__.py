"""The sounds demo: task, model and its construction."""
