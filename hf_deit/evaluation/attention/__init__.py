"""What the special tokens of a model look at, and how alike they are."""
