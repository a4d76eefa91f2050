"""A page on which anybody can try a classifier: a folder that a browser opens, without a server or a network."""
