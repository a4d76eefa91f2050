"""Where models, their teacher and the labels part."""
