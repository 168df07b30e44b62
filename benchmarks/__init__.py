"""What Cellar can do and what it costs: the demo (`python -m benchmarks.demo`) and the benchmark (`python -m benchmarks`)."""
