"""Tests with injected faults: kills, cuts, races, mutants."""
