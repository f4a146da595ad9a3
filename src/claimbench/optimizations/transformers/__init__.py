"""Techniques of Transformers, and of systems that are driven like it: each changes a `GenerationSetup` of `hf/`."""
