"""A classifier as a program of another runtime, with its preprocessing and its labels inside."""
