"""Rewards: artifacts and their prompts → one number per sample."""
