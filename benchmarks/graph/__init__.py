"""Measurements of kvflow.graph."""
