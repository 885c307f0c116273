"""The sounds demo: task, model and how it is built."""
