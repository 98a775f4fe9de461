"""Measurements of what models learn with each similarity: ``python -m benchmarks.learning``."""
