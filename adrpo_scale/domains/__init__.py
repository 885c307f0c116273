"""Domains: what is generated, and how likely or how far from the reference it is."""
