"""Stock AutoQuant, one case at a time."""
