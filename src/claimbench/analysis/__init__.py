"""From results to numbers: metrics, one tidy table, intervals, physical limits."""
