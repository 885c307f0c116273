"""Prompts, their file formats, audio clips, and the preparation of data sets."""
