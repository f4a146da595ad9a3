"""What an hour of a lent GPU is to find out, in stages that are each one command: see `benchmarks/gpu_day.py`."""
