"""The images that models are evaluated on, and their labels."""
