"""How fast models are, and what a forward pass costs."""
