"""The benchmark's network in Triton's Python backend, where somebody has installed it."""
