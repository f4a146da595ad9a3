"""From a table to verdicts: the parts of `judge`."""
