"""A trained model asked: samples, benchmarks."""
