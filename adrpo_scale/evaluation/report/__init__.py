"""Finished runs and evaluations in tables and figures, from their folders alone."""
