"""Claimbench's own engine: a decode loop in which every part can be exchanged."""
