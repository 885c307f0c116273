"""The demos: small real models and data of the three domains, built by code with pinned seeds."""
