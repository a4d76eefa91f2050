"""The proof that an exported classifier answers as the trained one does, made in a process without torch."""
