"""What half an hour of a GPU is to find out, in stages that are each one command: see `benchmarks/gpu_day.py`."""
