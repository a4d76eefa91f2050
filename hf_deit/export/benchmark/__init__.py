"""A trained classifier in one runtime and another: how fast, how large, and how often right."""
