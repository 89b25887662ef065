"""The service under load, and for a long time."""
