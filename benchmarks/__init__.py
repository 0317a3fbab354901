"""Benchmarks of the package against hand-written code."""
