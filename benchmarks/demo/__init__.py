"""What Cellar can do, in chapters that check themselves: `python -m benchmarks.demo`."""
