"""Workflows that declare nothing: their order is learned, and shown as graphs.

Import from the modules: ``orders`` is below ``kvflow.server.workflows``, the others are above it.
"""
