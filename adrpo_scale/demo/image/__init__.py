"""The image demo: task, models and how they are built."""
