"""Rollouts by another program, in one process of its own beside each rank."""
