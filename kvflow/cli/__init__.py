"""The ``kvflow`` command."""
