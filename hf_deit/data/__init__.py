"""From rows of a data set to seeded training views, and to batches on the device."""
