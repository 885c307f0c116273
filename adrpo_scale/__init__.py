"""adrpo_scale: online reinforcement fine-tuning with ADRPO (arXiv 2510.18053), at cluster scale."""

__version__ = "0.1.0"
