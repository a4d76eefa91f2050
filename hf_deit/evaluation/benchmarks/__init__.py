"""Benchmarks: arms in turn in one process, ratios within each round."""
