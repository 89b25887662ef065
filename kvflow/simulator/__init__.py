"""A discrete-event model of the engine that runs KVFlow's own code."""
