"""Checks of a model's parts against computations of another kind: what `scripts/selfcheck` runs."""
