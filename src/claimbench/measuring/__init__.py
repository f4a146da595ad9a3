"""Cells -> results: a block's supervised process, its clock, the ranks of a cell that has several, the ceilings."""
