"""The machine: what it is, its memory, its page cache, processes and launchers."""
