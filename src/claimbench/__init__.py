"""Claimbench: published claims about LLM inference speed, reproduced on the machine at hand."""

__version__ = "0.1.0"
