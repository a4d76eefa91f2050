"""The commands: each reads its command line, puts the parts of a run together, and prints what came of it."""
