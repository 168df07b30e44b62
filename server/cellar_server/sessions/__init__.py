"""Sessions: positions, stored answers and state, above the scheduler and below the engine's thread."""
