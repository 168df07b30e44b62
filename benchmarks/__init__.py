"""What Cellar can do (`python -m benchmarks.demo`) and what it costs (`python -m benchmarks`)."""
