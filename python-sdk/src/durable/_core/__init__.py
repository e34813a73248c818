"""Values, names, options and statements: no I/O, and no knowledge of a connection."""
