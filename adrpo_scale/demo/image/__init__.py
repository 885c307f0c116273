"""The image demo: task, models and their construction."""
