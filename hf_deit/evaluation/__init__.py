"""What a trained model does, and what it costs: benchmarks that compare like with like."""
