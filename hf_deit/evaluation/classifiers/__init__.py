"""The models that are evaluated: any image classifier, with its own preprocessing."""
