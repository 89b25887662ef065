"""Measurements. Run as ``python -m benchmarks.<package>.<name>`` from the root of the checkout."""
