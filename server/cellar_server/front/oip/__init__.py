"""The Open Inference Protocol in front of the same engines, sessions, limits and errors as the native API."""
