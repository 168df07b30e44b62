"""Runtimes: batched calls of a model's graphs. Know no session."""
