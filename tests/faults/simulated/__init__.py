"""A simulator of whole runs, without a process, a sleep or a disk: see run.py."""
