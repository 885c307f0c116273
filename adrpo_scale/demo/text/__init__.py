"""The text demos: tasks, models and their construction."""
