"""KVFlow on a CUDA machine, with or without a network: ``pack`` and ``run``."""
