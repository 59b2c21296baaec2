"""Many runs as one: planned, left out where they are done, shared among processes, and counted at the end."""
