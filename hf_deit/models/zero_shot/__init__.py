"""Models that know classes by their names, as CLIP and SigLIP do, as classifiers."""
