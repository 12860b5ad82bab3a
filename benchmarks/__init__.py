"""Driftlab beside its alternatives on the same work, in one run."""
