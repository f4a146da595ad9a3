"""Whole decode steps, and the prefill of packed rows."""
