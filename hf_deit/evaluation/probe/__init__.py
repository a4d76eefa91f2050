"""A linear classifier on the features of a backbone that stays as it is."""
