"""What a model says of images that need no labels: a table of its answers, and folders sorted by them."""
