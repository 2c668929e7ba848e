"""The report of a scheme."""
