"""Prompts, their file formats, audio clips; and how data sets are prepared."""
