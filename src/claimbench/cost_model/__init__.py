"""What a pass of an architecture costs, and what hardware allows. Pure arithmetic."""
