"""Transformers as its users drive it: how a model is set up, stepped through, and what is seen to run."""
