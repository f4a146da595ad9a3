"""Rounds until every claim is settled, or the budget is spent: what to measure next follows from what is undecided."""
