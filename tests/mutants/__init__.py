"""Seeded bugs: each must be caught by the simulator (`python -m tests.mutants`)."""
