"""Scenarios on a real engine: what each kind of cache makes of them."""
