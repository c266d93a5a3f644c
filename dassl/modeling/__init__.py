"""Functions for models; Dassl's package of that name."""
