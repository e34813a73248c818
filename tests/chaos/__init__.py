"""What goes wrong on purpose: kills, cuts, races, mutants; and what must hold then."""
