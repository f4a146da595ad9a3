"""Single operations that a technique puts in the place of plain ones."""
