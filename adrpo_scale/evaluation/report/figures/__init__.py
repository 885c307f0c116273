"""Figures of a report: pure functions from read runs to pictures, one list of them by name."""
