"""Measures this project beside the bare engine, ProxyStore and a plain copy: ``python -m benchmarks``."""
