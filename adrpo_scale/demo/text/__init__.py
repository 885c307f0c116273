"""The text demos: tasks, models and how they are built."""
