"""How often models are right, on which classes, and how sure they are of it."""
