"""The Hub: calls that survive its failures, what of a run is published, and the cards that say so."""
