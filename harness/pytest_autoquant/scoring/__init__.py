"""How scores are obtained."""
