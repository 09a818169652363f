"""Many runs that differ in one thing at a time: planned, shared out among processes, kept as records, compared."""
