"""Techniques of Claimbench's own engine: each plugs a part into an `Engine`."""
