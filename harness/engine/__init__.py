"""How scores are obtained. Every engine answers the same ``Engine`` protocol."""
