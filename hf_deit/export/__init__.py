"""Trained classifiers in other formats: checkpoints bit for bit, programs of other runtimes with proof, pages."""
