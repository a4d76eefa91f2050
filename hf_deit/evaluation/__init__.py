"""What trained models do, where they fail, what they look at and what they cost; and benchmarks of training."""
